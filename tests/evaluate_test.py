"""What is said at the end of an evaluation, and where its floors come from."""

import contextlib
import io
import math

from absl.testing import absltest

from fs4_jax import evaluate
from fs4_jax.config import default_config


def scores(**changes):
    return {"title": "this model", "split": "val", "num_images": 7, "protocol": "hungarian",
            "miou": 34.04, "accuracy": 67.7, "num_clusters": 11, "clusters_used": 9,
            "largest_cluster_share": 0.31,
            "floors": {"kmeans_plain": {"miou": 27.1, "accuracy": 54.6},
                       "kmeans_strong": {"miou": 30.0, "accuracy": 56.3},
                       "kmeans_rgb": {"miou": 15.2, "accuracy": 34.2}}} | changes


class SummaryTest(absltest.TestCase):

    def test_lines(self):
        text = evaluate.summary(scores(probes={"linear": {"miou": 56.5, "accuracy": 89.9}}),
                                default_config())
        self.assertEqual(text.splitlines(), [
            "                              mIoU    accuracy   (val, 7 images, protocol hungarian)",
            "this model                    34.0 %    67.7 %",
            "plain k-means on its tokens   27.1 %    54.6 %",
            "strong k-means on its tokens  30.0 %    56.3 %",
            "k-means on RGB                15.2 %    34.2 %",
            "linear probe, labelled        56.5 %    89.9 %"])

    def test_switches_are_named(self):
        text = evaluate.summary(scores(flip=True, crf=True), default_config())
        self.assertIn("protocol hungarian, mirrored images averaged, CRF)", text)

    def test_clusters_that_may_collapse(self):
        text = evaluate.summary(scores(clusters_used=4, largest_cluster_share=0.4),
                                default_config())
        self.assertRegex(text, "\ncheck: 4 of 11 clusters are in use[.] Look at the pictures: .*"
                               "optimizer.learning_rate")
        unknown = scores(clusters_used=math.nan)
        del unknown["largest_cluster_share"]
        self.assertNotIn("check", evaluate.summary(unknown, default_config()))


class ImagesOfTrainingTest(absltest.TestCase):

    def test_the_training_split(self):
        config = default_config()
        config.data.name, config.data.num_train = "scenes", 5
        self.assertLen(evaluate._images_of_training(config), 5)

    def test_a_word_where_it_is_not_there(self):
        config = default_config()
        config.data.images = "/no/such/folder"
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertIsNone(evaluate._images_of_training(config))
        self.assertRegex(said.getvalue(), "floors are fitted to the scored images: .*no/such")


if __name__ == "__main__":
    absltest.main()
