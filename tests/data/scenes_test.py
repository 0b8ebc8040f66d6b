"""The embedded scenes: exact, fast enough, found by texture and not by colour."""

import hashlib
import pickle
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import ndimage
from scipy import optimize

from fs4_jax.data import scene_textures, scenes
from fs4_jax.data import scribbles
from fs4_jax.evaluation.confusion import IGNORE_LABEL

NUM_CLASSES = len(scenes.CLASS_NAMES)


def _digest(seed, split, index, image_size):
    image, label = scenes.render_scene(seed, split, index, image_size)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


def _kmeans(x, k, rng, steps=25):
    """Centres of plain k-means, started by farthest-first sampling."""
    centres = [x[rng.integers(len(x))]]
    for _ in range(k - 1):
        distance = np.min([((x - c) ** 2).sum(-1) for c in centres], 0)
        centres.append(x[rng.choice(len(x), p=distance / distance.sum())])
    centres = np.array(centres)
    for _ in range(steps):
        nearest = _nearest(x, centres)
        for j in np.unique(nearest):
            centres[j] = x[nearest == j].mean(0)
    return centres


def _nearest(x, centres):
    return ((centres**2).sum(-1) - 2 * x @ centres.T).argmin(-1)


def _matched_miou(cluster, label):
    """mIoU after the best one-to-one matching of clusters to classes."""
    cell = cluster.astype(int) * NUM_CLASSES + label
    counts = np.bincount(cell, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
    rows, columns = optimize.linear_sum_assignment(counts, maximize=True)
    union = counts.sum(1)[rows] + counts.sum(0)[columns] - counts[rows, columns]
    return float(np.mean(counts[rows, columns] / union))


def _texture(image, step=4):
    """float [h*w, d] features that a change of gain does not move: oriented gradient energies."""
    light = np.log(image.astype(np.float32).mean(-1) + 16)
    ratios, levels = [], []
    for sigma in (0.5, 1.2, 2.4):
        smooth = ndimage.gaussian_filter(light, sigma)
        dy, dx = ndimage.sobel(smooth, 0) / 8, ndimage.sobel(smooth, 1) / 8
        energy = np.stack([dx * dx, dy * dy, 2 * abs(dx * dy)])
        energy = ndimage.gaussian_filter(energy, (0, 4, 4))[:, step // 2 :: step, step // 2 :: step]
        level = energy[:2].mean(0) + 6e-4
        ratios.append((energy + 1.5e-4) / level)
        levels.append(0.5 * np.log(level)[None])
    features = np.concatenate(ratios + levels)
    return features.reshape(len(features), -1).T


class RenderTest(parameterized.TestCase):

    def test_same_to_the_bit_with_and_without_caches(self):
        first = _digest(3, "train", 5, 48)
        scene_textures.texture_tile.cache_clear()
        scenes.render_scene(3, "val", 1, 48)  # other scenes in between change nothing
        self.assertEqual(_digest(3, "train", 5, 48), first)

    def test_same_to_the_bit_in_another_process(self):
        script = (
            "import hashlib; from fs4_jax.data import scenes;"
            "image, label = scenes.render_scene(3, 'train', 5, 48);"
            "print(hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        self.assertEqual(run.stdout.strip(), _digest(3, "train", 5, 48), run.stderr)

    def test_seed_split_and_index_each_give_another_scene(self):
        keys = [(s, p, i) for s in (0, 1) for p in ("train", "val") for i in range(5)]
        self.assertLen({_digest(*key, 48) for key in keys}, len(keys))

    @parameterized.parameters(32, 64, 128)
    def test_sizes(self, image_size):
        image, label = scenes.render_scene(0, "train", 2, image_size)
        self.assertEqual(image.shape, (image_size, image_size, 3))
        self.assertEqual((image.dtype, label.dtype), (np.uint8, np.uint8))
        self.assertEqual(label.shape, (image_size, image_size))
        self.assertGreater(image.std(), 5)

    def test_layout_scales_with_the_size(self):
        same = []
        for index in range(8):
            small = scenes.render_scene(0, "train", index, 64)[1]
            large = scenes.render_scene(0, "train", index, 128)[1]
            same.append(np.mean(large[::2, ::2] == small))
        self.assertGreater(np.mean(same), 0.9)

    @parameterized.parameters(dict(split="test"), dict(seed=-1), dict(image_size=16))
    def test_bad_arguments_say_what_is_allowed(self, seed=0, split="train", image_size=96):
        with self.assertRaisesRegex(ValueError, "seed >= 0, split in .*image_size >= 32"):
            scenes.render_scene(seed, split, 0, image_size)
        with self.assertRaises(ValueError):
            scenes.SceneSource(1, seed=seed, split=split, image_size=image_size)


class StatisticsTest(absltest.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        drawn = [scenes.render_scene(0, "train", i, 96) for i in range(100)]
        cls.images = np.stack([image for image, _ in drawn])
        cls.labels = np.stack([label for _, label in drawn])

    def test_classes_are_present_and_balanced(self):
        self.assertLess(self.labels.max(), NUM_CLASSES)
        share = np.bincount(self.labels.ravel(), minlength=NUM_CLASSES) / self.labels.size
        self.assertGreater(share.min(), 0.03, share)
        self.assertLess(share.max(), 0.25, share)
        kinds = np.mean([len(np.unique(label)) for label in self.labels])
        self.assertBetween(kinds, 4, 8)

    def test_place_alone_does_not_give_the_class(self):
        rows = self.labels.transpose(1, 0, 2).reshape(96, -1)
        best = [np.bincount(row).max() / row.size for row in rows]
        self.assertLess(np.mean(best), 0.4)

    def test_colour_is_poor_and_texture_is_not(self):
        rng = np.random.default_rng(0)
        label = self.labels[:, 2::4, 2::4].ravel()
        colour = self.images[:, 2::4, 2::4].reshape(-1, 3) / 255.0
        texture = np.concatenate([_texture(image) for image in self.images])
        texture = (texture - texture.mean(0)) / texture.std(0)
        score = {}
        for name, x in (("colour", colour), ("texture", texture)):
            centres = _kmeans(x[rng.choice(len(x), 6000, replace=False)], NUM_CLASSES, rng)
            score[name] = _matched_miou(_nearest(x, centres), label)
        self.assertLess(score["colour"], 0.15, score)
        self.assertGreater(score["texture"], 2 * score["colour"], score)


class SceneSourceTest(parameterized.TestCase):

    def test_contract(self):
        source = scenes.SceneSource(13, split="val", image_size=64)
        self.assertLen(source, 13)
        self.assertEqual(source.num_classes, len(source.class_names))
        example = source[12]
        self.assertEqual(set(example), {"name", "image", "label"})
        self.assertEqual(example["name"], "scene_val_000012")
        self.assertEqual(source.example_name(12), "scene_val_000012")
        self.assertEqual(source.size(12), example["label"].shape)
        for key, array in zip(("image", "label"), scenes.render_scene(0, "val", 12, 64)):
            np.testing.assert_array_equal(example[key], array)
        for bad in (13, -1):
            with self.assertRaises(IndexError):
                source[bad]

    def test_objects_are_the_things_one_by_one(self):
        classes, objects = (scenes.SceneSource(40, split="val", labels=labels)
                            for labels in ("classes", "objects"))
        self.assertLen(objects.class_names, objects.num_classes)
        things, numbers = (scenes.BUILDING, scenes.TREE, scenes.VEHICLE, scenes.ANIMAL), set()
        for i in range(40):
            np.testing.assert_array_equal(classes[i]["image"], objects[i]["image"])
            label, ids = classes[i]["label"], objects[i]["label"]
            np.testing.assert_array_equal(ids > 0, np.isin(label, things))
            for number in np.unique(ids[ids > 0]):          # one thing is of one class
                self.assertLen(np.unique(label[ids == number]), 1)
            numbers.add(int(ids.max()))
        self.assertContainsSubset({2, 3, 4, scenes.MOST_THINGS}, numbers)
        self.assertLessEqual(max(numbers), scenes.MOST_THINGS)

    def test_cache_keeps_and_cannot_be_spoiled(self):
        source = scenes.SceneSource(2, image_size=48)
        example = source[0]
        self.assertIs(source[0]["image"], example["image"])
        with self.assertRaises(ValueError):
            example["image"][0, 0] = 0
        example["label"] = None
        self.assertIsNotNone(source[0]["label"])
        fresh = scenes.SceneSource(2, image_size=48, cache=False)
        self.assertIsNot(fresh[0]["image"], fresh[0]["image"])

    @parameterized.parameters(None, "scribbles", "points")
    def test_pickle_leaves_the_cache_behind(self, annotation):
        source = scenes.SceneSource(4, image_size=48, annotation=annotation)
        empty = len(pickle.dumps(source))
        example = source[3]
        self.assertEqual("scribble" in example, annotation is not None)
        self.assertLen(pickle.dumps(source), empty)
        for key, value in pickle.loads(pickle.dumps(source))[3].items():
            np.testing.assert_array_equal(value, example[key])

    def test_unknown_annotation(self):
        with self.assertRaisesRegex(ValueError, "'scribbles' or 'points', not 'boxes'"):
            scenes.SceneSource(1, annotation="boxes")


class ScribblesTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.labels = [scenes.render_scene(1, "val", i, 96)[1] for i in range(6)]

    def test_strokes_stay_inside_and_reach_every_region(self):
        for label in self.labels:
            label = label.copy()
            label[:20, :20] = IGNORE_LABEL
            drawn = scribbles.scribbles(label, np.random.default_rng(0))
            marked = drawn != IGNORE_LABEL
            np.testing.assert_array_equal(drawn[marked], label[marked])
            self.assertBetween(marked.mean(), 0.01, 0.2)
            for kind in np.unique(label[label != IGNORE_LABEL]):
                parts, count = ndimage.label(label == kind)
                for number in range(1, count + 1):
                    part = parts == number
                    self.assertEqual(marked[part].any(), part.sum() >= 16)
                    pieces = ndimage.label(marked & part, np.ones((3, 3)))[1]
                    self.assertLessEqual(pieces, 1)  # one stroke, in one piece

    def test_ratio_shortens_to_a_spot(self):
        label = self.labels[0]
        drawn = [
            scribbles.scribbles(label, np.random.default_rng(7), ratio=ratio) != IGNORE_LABEL
            for ratio in (0.0, 0.3, 0.6, 1.0)
        ]
        for shorter, longer in zip(drawn, drawn[1:]):
            self.assertTrue(np.all(longer[shorter]))
            self.assertLess(shorter.sum(), longer.sum())
        with self.assertRaisesRegex(ValueError, "0..1"):
            scribbles.scribbles(label, np.random.default_rng(0), ratio=1.5)

    def test_a_wide_plain_region_gets_a_long_stroke(self):
        label = np.zeros((40, 120), np.uint8)
        drawn = scribbles.scribbles(label, np.random.default_rng(0)) == 0
        self.assertGreater(np.ptp(np.flatnonzero(drawn.any(0))), 60)

    def test_width(self):
        label = np.zeros((60, 160), np.uint8)
        for width in (1, 3, 7):
            drawn = scribbles.scribbles(label, np.random.default_rng(0), width=(width, width)) == 0
            across = drawn.sum(0)[drawn.any(0)]              # the stroke runs along the rows
            self.assertBetween(np.median(across), width, 1.5 * width)
        with self.assertRaisesRegex(ValueError, "least, most"):
            scribbles.scribbles(label, np.random.default_rng(0), width=(4, 2))

    def test_points(self):
        label = np.full((30, 30), 2, np.uint8)
        label[:, 15:] = 1
        label[5:8, 5:8] = 0  # 9 pixels: left bare
        drawn = scribbles.points(label, np.random.default_rng(0), count=3)
        self.assertEqual({k: int((drawn == k).sum()) for k in range(3)}, {0: 0, 1: 3, 2: 3})
        self.assertTrue(np.all(label[drawn != IGNORE_LABEL] == drawn[drawn != IGNORE_LABEL]))

    @parameterized.parameters("scribbles", "points")
    def test_deterministic(self, kind):
        draw = scribbles.annotator(kind)
        first, second = (draw(self.labels[1], np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(first, second)


if __name__ == "__main__":
    absltest.main()
