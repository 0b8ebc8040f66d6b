"""COCO-Stuff as a tensorflow_datasets builder, which needs no TensorFlow.

  from fs4_jax.data.cocostuff_tfds import Cocostuff
  Cocostuff(root=TREE, data_dir=DIR, file_format="array_record").download_and_prepare()
  source = tfds.data_source("cocostuff", data_dir=DIR, split="val")     # once it is imported

Examples are {"name", "image" uint8 [H, W, 3], "label" uint8 [H, W, 1]}, labels being png ids
(0..181, 255 unlabelled; see `cocostuff.label_set`), in records that hold the tree's own JPEG and
PNG bytes. `python -m fs4_jax.data.prepare` writes the same records without tensorflow_datasets,
can be interrupted, and `tfds.builder_from_directory(DIR).as_data_source("val")` reads them.

Install tensorflow_datasets and importlib_resources for this file; nothing else here imports them.
"""

import pathlib

import tensorflow_datasets as tfds

from fs4_jax.data.cocostuff import tree
from fs4_jax.data.folder import check_pairs
from fs4_jax.data.images import DataError


class Cocostuff(tfds.core.GeneratorBasedBuilder):
    """Splits "train" and "val": all the images of the tree, in the order of their ids.

    Args:
      root: the official tree, see `cocostuff.CocoStuffSource`; only needed to prepare it.
      **options: of tensorflow_datasets' builders; give file_format="array_record".
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, root=None, **options):
        self._tree_root = root
        super().__init__(**options)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, disable_shuffling=True,
            description="COCO-Stuff 164k: images of COCO 2017, stuffthingmaps as labels.",
            homepage="https://github.com/nightrome/cocostuff",
            features=tfds.features.FeaturesDict({
                "name": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png")}))

    def _split_generators(self, dl_manager):
        del dl_manager      # nothing is fetched: COCO's terms are to be accepted by hand
        if self._tree_root is None:
            raise DataError("Cocostuff(root=TREE, ...): give the tree to prepare it from")
        return {split: self._generate_examples(split) for split in ("train", "val")}

    def _generate_examples(self, split):
        files = tree(self._tree_root, split)
        check_pairs(files["image"], files["label"], self._tree_root, self._tree_root)
        for number, (stem, image) in enumerate(files["image"].items()):
            # A path is read as it is; an array would be encoded.
            yield number, {"name": stem, "image": pathlib.Path(image),
                           "label": pathlib.Path(files["label"][stem])}
