"""What is made of a config before the first step."""

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.config import default_config
from fs4_jax.data.folder import DataError
from fs4_jax.run import checked_source
from tests.data.files import FolderCase, picture


class CheckedSourceTest(FolderCase):

    def setUp(self):
        super().setUp()
        self.config = default_config()
        self.config.encoder.variant = "mu/8"
        self.config.data.images = str(self.root / "images")
        self.write("images/a.jpg", picture())
        self.write("images/b.jpg", picture(12, 20))

    def test_images_below_the_patch_are_found_before_training(self):
        self.assertLen(checked_source(self.config, "train"), 2)
        self.config.encoder.variant = "S/14"
        with self.assertRaisesRegex(DataError, "2 of the 2 images .*patch of 14"):
            checked_source(self.config, "train")
        self.assertLen(checked_source(self.config, "eval"), 2)      # whole images are resized

    def test_masks_that_do_not_fit_are_found_before_training(self):
        self.config.data.labels = str(self.root / "labels")
        self.write("labels/a.png", np.zeros((12, 20), np.uint8))
        self.write("labels/b.png", np.zeros((12, 21), np.uint8))
        with self.assertRaisesRegex(DataError, r"labels/b\.png is 21 x 12 pixels"):
            checked_source(self.config, "eval")

    @parameterized.parameters("train", "eval")
    def test_scenes(self, split):
        self.config.data.name = "scenes"
        self.config.data.image_size = 32
        self.assertEqual(checked_source(self.config, split).num_classes, 10)


if __name__ == "__main__":
    absltest.main()
