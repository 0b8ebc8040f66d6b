"""Per-image matches against loops over pixels."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy.optimize import linear_sum_assignment

from fs4_jax.evaluation.objects import foreground_ari, mean_best_overlap
from fs4_jax.evaluation.per_image import PerImageHungarian, PerImageManyToOne, PerImageObjects


def images(seed, number=7, num_clusters=6, num_classes=5):
    """(prediction, label) pairs that agree on half of their pixels; some labels are ignored."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        label = rng.choice(rng.integers(0, num_classes, 3), (9, 8))
        noise = rng.integers(0, num_clusters, label.shape)
        prediction = np.where(rng.random(label.shape) < 0.6, (label * 2 + 1) % num_clusters, noise)
        label = np.where(rng.random(label.shape) < 0.1, 255, label)
        yield prediction, label


def counts_of(prediction, label, num_clusters=6, num_classes=5):
    counts = np.zeros((num_clusters, num_classes), int)
    for p, t in zip(prediction.ravel(), label.ravel()):
        if t != 255:
            counts[p, t] += 1
    return counts


class ManyToOneTest(parameterized.TestCase):

    @parameterized.parameters(range(3))
    def test_against_a_loop(self, seed):
        scorer, means, accuracies = PerImageManyToOne(5), [], []
        for prediction, label in images(seed):
            scorer.add(counts_of(prediction, label))
            votes, mapped = label != 255, np.full(label.shape, -1)
            for k in np.unique(prediction[votes]):
                inside = (prediction == k) & votes
                mapped[inside] = np.bincount(label[inside]).argmax()
            ious = [((mapped == c) & (label == c)).sum() / ((mapped == c) | (label == c)).sum()
                    for c in np.unique(label[votes])]
            means.append(100 * np.mean(ious))
            accuracies.append(100 * (mapped == label)[votes].mean())
        self.assertAlmostEqual(scorer.scores().miou, np.mean(means), places=9)
        self.assertAlmostEqual(scorer.scores().accuracy, np.mean(accuracies), places=9)

    def test_a_class_is_averaged_over_the_images_it_is_in(self):
        scorer = PerImageManyToOne(3)
        scorer.add(np.array([[4, 0, 0], [0, 4, 0]]))
        scorer.add(np.array([[4, 4, 0]]))
        scores = scorer.scores()
        np.testing.assert_allclose(scores.per_class_iou, [75, 50, np.nan])
        self.assertEqual(scores.miou, (100 + 25) / 2)
        self.assertIsNone(scores.matching)

    def test_pixels_without_a_cluster_are_misses_and_empty_images_do_not_count(self):
        scorer = PerImageManyToOne(2)
        scorer.add(np.zeros((3, 2)))
        self.assertTrue(np.isnan(scorer.scores().miou))
        scorer.add(np.array([[3, 0]]), unassigned=np.array([1, 0]))
        self.assertEqual((scorer.scores().miou, scorer.scores().accuracy), (75, 75))


class HungarianTest(parameterized.TestCase):

    @parameterized.parameters(range(3))
    def test_against_a_loop(self, seed):
        scorer = PerImageHungarian(5)
        hit, predicted, truth = np.zeros(5), np.zeros(5), np.zeros(5)
        for prediction, label in images(seed):
            counts = counts_of(prediction, label)
            scorer.add(counts)
            for k, c in zip(*linear_sum_assignment(-counts)):
                if counts[k, c]:
                    hit[c] += counts[k, c]
                    predicted[c] += counts[k].sum()
            truth += counts.sum(0)
        scores = scorer.scores()
        np.testing.assert_allclose(scores.per_class_iou, 100 * hit / (truth + predicted - hit))
        self.assertAlmostEqual(scores.accuracy, 100 * hit.sum() / truth.sum(), places=9)

    def test_a_cluster_is_not_made_to_be_a_class_that_is_not_there(self):
        scorer = PerImageHungarian(3)
        scorer.add(np.array([[5, 0, 0], [3, 0, 0]]))
        np.testing.assert_allclose(scorer.scores().per_class_iou, [62.5, np.nan, np.nan])


class ObjectsTest(parameterized.TestCase):

    @parameterized.parameters(range(3))
    def test_means_of_the_images_scores(self, seed):
        scorer, overlaps, indices = PerImageObjects(5), [], []
        for prediction, label in images(seed):
            scorer.add(counts_of(prediction, label))
            overlaps.append(mean_best_overlap(prediction, label))
            indices.append(foreground_ari(prediction, label))
        self.assertAlmostEqual(scorer.scores().mbo, np.nanmean(overlaps), places=9)
        self.assertAlmostEqual(scorer.scores().fg_ari, np.nanmean(indices), places=9)

    def test_pixels_without_a_cluster(self):
        """They are one more group, and overlap with nothing."""
        scorer = PerImageObjects(3)
        scorer.add([[4, 2, 0]], [0, 2, 6])
        truth, prediction = np.repeat([0, 1, 2], [4, 4, 6]), np.repeat([0, 1], [6, 8])
        scores = scorer.scores()
        self.assertAlmostEqual(scores.fg_ari, foreground_ari(prediction[None], truth[None]))
        self.assertAlmostEqual(scores.mbo, 100 * (2 / 8 + 0) / 2)

    def test_images_without_an_object_do_not_take_part(self):
        scorer = PerImageObjects(2)
        scorer.add([[5, 0], [3, 0]])
        self.assertTrue(np.isnan(scorer.scores().mbo) and np.isnan(scorer.scores().fg_ari))
        scorer.add([[5, 0], [0, 3]])
        self.assertEqual((scorer.scores().mbo, scorer.scores().fg_ari), (100.0, 100.0))


if __name__ == "__main__":
    absltest.main()
