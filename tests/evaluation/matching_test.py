"""Tests of fs4_jax.evaluation.matching and of the protocol that uses it."""

import itertools
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.evaluation import confusion_matrix, match_clusters, score_matching
from fs4_jax.evaluation.matching import match_identity, match_many_to_one
from fs4_jax.evaluation.protocols import PROTOCOLS, evaluate_counts, table


def golden(seed, num_classes, num_clusters, side):
    """The arrays of the golden cases: the order of the draws is part of the definition."""
    rng = np.random.default_rng(seed)
    g = rng.integers(-1, num_classes, (6, side, side))
    keep = rng.random(g.shape) < 0.5
    p = np.where(keep, (7 * g + 3) % num_clusters, rng.integers(0, num_clusters, g.shape))
    return p, g


class GoldenTest(parameterized.TestCase):
    """Scores that the evaluation code of STEGO and of PiCIE gave for the same arrays."""

    @parameterized.named_parameters(
        ("A", 1, 27, 320, 35.01586, 51.86902),
        ("B", 2, 27, 64, 34.87240, 51.70143),
        ("E", 5, 3, 64, 50.61800, 67.21491))
    def test_scores(self, seed, num_classes, side, miou, accuracy):
        prediction, label = golden(seed, num_classes, num_classes, side)
        for ignore in (-1, 255):
            label = np.where(label < 0, ignore, label)
            counts = confusion_matrix(prediction, label, num_clusters=num_classes,
                                      num_classes=num_classes)
            scores = score_matching(np.asarray(counts), match_clusters(np.asarray(counts)))
            # STEGO divides in float32, so its own digits end at 1e-5 points.
            self.assertAlmostEqual(scores.miou, miou, delta=1e-4)
            self.assertAlmostEqual(scores.accuracy, accuracy, delta=1e-4)


class MatchClustersTest(parameterized.TestCase):

    @parameterized.parameters((4, 4), (5, 3), (3, 5), (6, 1), (1, 6))
    def test_is_the_best_of_all_matches(self, num_clusters, num_classes):
        counts = np.random.default_rng(0).integers(0, 1000, (num_clusters, num_classes))
        matching = match_clusters(counts)
        matched = matching[matching >= 0]
        self.assertLen(set(matched), min(num_clusters, num_classes))
        self.assertLen(matched, min(num_clusters, num_classes))
        got = counts[matching >= 0, matched].sum()
        few, many = sorted((num_clusters, num_classes))
        table = counts if num_clusters <= num_classes else counts.T
        best = max(sum(table[i, j] for i, j in enumerate(order))
                   for order in itertools.permutations(range(many), few))
        self.assertEqual(got, best)

    def test_maximises_pixels_not_iou(self):
        """0 + 7 pixels win over 3 + 3, though the mean IoU would be 30 instead of 26.9."""
        counts = np.array([[3, 0], [7, 3]])
        matching = match_clusters(counts)
        np.testing.assert_array_equal(matching, [1, 0])
        self.assertAlmostEqual(score_matching(counts, matching).miou, 350 / 13)
        self.assertAlmostEqual(score_matching(counts, matching[::-1]).miou, 30.0)

    def test_takes_counts_beyond_32_bits(self):
        counts = np.array([[2**40, 2**40 + 1], [5, 5]], np.int64)
        np.testing.assert_array_equal(match_clusters(counts), [1, 0])


class ScoreMatchingTest(absltest.TestCase):

    def test_written_out(self):
        scores = score_matching([[6, 2], [1, 3]], np.array([0, 1]))
        np.testing.assert_allclose(scores.per_class_iou, [100 * 6 / 9, 100 * 3 / 6])
        self.assertAlmostEqual(scores.miou, (100 * 6 / 9 + 50) / 2)
        self.assertAlmostEqual(scores.accuracy, 75.0)

    def test_a_class_absent_from_truth_and_prediction_is_left_out(self):
        scores = score_matching([[6, 0, 0], [0, 4, 0], [0, 0, 0]], np.array([0, 1, 2]))
        self.assertTrue(np.isnan(scores.per_class_iou[2]))
        self.assertEqual((scores.miou, scores.accuracy), (100.0, 100.0))

    def test_a_class_absent_from_the_truth_but_predicted_counts_zero(self):
        scores = score_matching([[6, 0, 0], [0, 4, 0], [2, 0, 0]], np.array([0, 1, 2]))
        np.testing.assert_allclose(scores.per_class_iou, [75, 100, 0])
        self.assertAlmostEqual(scores.miou, 175 / 3)

    def test_more_clusters_than_classes(self):
        """Pixels of an unmatched cluster are misses of their class, nobody's false alarms."""
        counts = np.array([[8, 0], [0, 9], [2, 1]])
        matching = match_clusters(counts)
        np.testing.assert_array_equal(matching, [0, 1, -1])
        scores = score_matching(counts, matching)
        np.testing.assert_allclose(scores.per_class_iou, [80, 90])
        self.assertAlmostEqual(scores.accuracy, 85.0)

    def test_fewer_clusters_than_classes(self):
        counts = np.array([[8, 1, 1], [0, 0, 5]])
        matching = match_clusters(counts)
        np.testing.assert_array_equal(matching, [0, 2])
        scores = score_matching(counts, matching)
        np.testing.assert_allclose(scores.per_class_iou, [80, 0, 100 * 5 / 6])
        self.assertAlmostEqual(scores.accuracy, 100 * 13 / 15)

    def test_clusters_that_share_a_class_are_merged(self):
        merged = score_matching([[3, 1], [4, 0], [1, 6]], np.array([0, 0, 1]))
        np.testing.assert_allclose(merged.per_class_iou,
                                   score_matching([[7, 1], [1, 6]], np.array([0, 1])).per_class_iou)

    def test_no_labelled_pixel_is_nan_not_zero(self):
        scores = score_matching(np.zeros((3, 2), int), np.array([0, 1, -1]))
        self.assertTrue(np.isnan(scores.miou) and np.isnan(scores.accuracy))

    def test_counts_are_exact_beyond_float32(self):
        counts = np.array([[2**30, 1], [0, 2**30]], np.int64)
        self.assertLess(score_matching(counts, np.array([0, 1])).accuracy, 100.0)

    def test_names_of_clusters_do_not_matter(self):
        counts = np.random.default_rng(0).integers(0, 99, (6, 4))
        order = np.random.default_rng(1).permutation(6)
        first, second = evaluate_counts(counts), evaluate_counts(counts[order])
        self.assertAlmostEqual(first.miou, second.miou)
        np.testing.assert_array_equal(first.matching[order], second.matching)


class RulesTest(absltest.TestCase):

    def test_many_to_one_by_most_pixels(self):
        counts = np.array([[5, 6], [0, 9], [4, 4], [0, 0]])
        np.testing.assert_array_equal(match_many_to_one(counts), [1, 1, 0, -1])
        scores = evaluate_counts(counts, "overcluster")
        np.testing.assert_allclose(scores.per_class_iou, [100 * 4 / 13, 100 * 15 / 24])

    def test_identity(self):
        np.testing.assert_array_equal(match_identity(np.zeros((4, 3))), [0, 1, 2, -1])
        np.testing.assert_array_equal(match_identity(np.zeros((2, 3))), [0, 1])

    def test_a_match_of_another_split(self):
        counts = np.array([[1, 9], [8, 2]])
        self.assertEqual(evaluate_counts(counts, matching=np.array([0, 1])).accuracy, 15.0)
        for wrong in ([0], [0, 2]):
            with self.assertRaisesRegex(ValueError, "does not fit counts of 2 clusters"):
                evaluate_counts(counts, matching=np.array(wrong))

    def test_the_published_bug_is_asked_for(self):
        """Pixels of the third cluster vanish: nobody is charged for them."""
        counts = np.array([[8, 0], [0, 9], [2, 1]])
        self.assertAlmostEqual(evaluate_counts(counts, "stego27").accuracy, 85.0)
        bug = evaluate_counts(counts, "stego27", bug_compatible="stego-extra-clusters")
        self.assertEqual((bug.accuracy, bug.miou), (100.0, 100.0))
        with self.assertRaisesRegex(ValueError, "'stego' is unknown; there is: stego-extra"):
            evaluate_counts(counts, bug_compatible="stego")


class ProtocolsTest(absltest.TestCase):

    def test_a_match_an_image_needs_images(self):
        with self.assertRaisesRegex(ValueError, "counts of a whole data set"):
            evaluate_counts(np.eye(2, dtype=int), "per-image-m2o")

    def test_the_table_has_them_all(self):
        rows = table().splitlines()
        self.assertEqual([row.split("`")[1] for row in rows[2:]], list(PROTOCOLS))
        self.assertLen({row.count("|") for row in rows}, 1)
        page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "protocols.md"
        self.assertIn(table(), page.read_text())

    def test_a_protocol_is_known_by_its_name(self):
        for name, protocol in PROTOCOLS.items():
            self.assertEqual(protocol.name, name)
        with self.assertRaisesRegex(ValueError, "unknown protocol 'stego'; there are: hungarian"):
            evaluate_counts(np.eye(2, dtype=int), "stego")


if __name__ == "__main__":
    absltest.main()
