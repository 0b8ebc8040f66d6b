"""Tests of fs4_jax.evaluation.knn, against loops."""

import numpy as np
from absl.testing import absltest

from fs4_jax.evaluation.knn import knn_scores, token_labels


class TokenLabelsTest(absltest.TestCase):

    def test_the_class_most_pixels_have(self):
        rng = np.random.default_rng(0)
        label = np.full((3, 20, 24), 255, np.uint8)
        sizes = np.array([[20, 24], [13, 17], [7, 9]])
        for row, (h, w) in enumerate(sizes):
            label[row, :h, :w] = rng.choice([0, 1, 2, 3, 255], (h, w), p=[.4, .3, .2, .05, .05])
        label[0, :5, :6] = 255                                   # a token without any label
        found = np.asarray(token_labels(label, sizes, (4, 4), 4))
        for row, (h, w) in enumerate(sizes):
            for r in range(4):
                for c in range(4):
                    ys = [y for y in range(h) if int((y + 0.5) * 4 / h) == r]
                    xs = [x for x in range(w) if int((x + 0.5) * 4 / w) == c]
                    votes = np.bincount(label[row][np.ix_(ys, xs)].reshape(-1), minlength=256)[:4]
                    want = np.argmax(votes) if votes.max() else 255
                    self.assertEqual(found[row, r, c], want, (row, r, c))


class KnnScoresTest(absltest.TestCase):

    def test_votes_of_the_nearest(self):
        rng = np.random.default_rng(1)
        tokens, bank = rng.normal(size=(9, 5)), rng.normal(size=(40, 5))
        labels = rng.integers(0, 3, 40)
        scores = np.asarray(knn_scores(tokens.astype(np.float32), bank.astype(np.float32), labels,
                                       num_classes=3, num_neighbours=7))
        for x, got in zip(tokens, scores):
            cosine = bank @ x / np.linalg.norm(bank, axis=1) / np.linalg.norm(x)
            near = np.argsort(-cosine)[:7]
            weight = np.exp(cosine[near] / 0.07)
            want = np.bincount(labels[near], weight, 3) / weight.sum()
            np.testing.assert_allclose(got, want, atol=2e-5)     # float32 cosines over 0.07


if __name__ == "__main__":
    absltest.main()
