"""Regions of masks as COCO's annotations: pycocotools makes the same pixels of them."""

import numpy as np
from absl.testing import absltest

from fs4_jax.evaluation.regions import coco_annotations, outline

try:
    from pycocotools import mask as coco
except ImportError:
    coco = None


def pixels(annotation, shape):
    """bool [h, w] that pycocotools makes of an annotation."""
    code = annotation["segmentation"]
    if isinstance(code, list):
        code, = coco.frPyObjects(code, *shape)
    return coco.decode(code).astype(bool)


class RegionsTest(absltest.TestCase):

    def test_outlines(self):
        square = outline(np.ones((2, 3), bool))
        np.testing.assert_array_equal(square, [[0, 0], [3, 0], [3, 2], [0, 2]])
        ring = np.ones((3, 3), bool)
        ring[1, 1] = False
        self.assertIsNone(outline(ring))
        # Its ends touch at a corner: what they enclose hangs together with the outside.
        hook = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
        corners = outline(hook)
        self.assertLen(corners, 10)
        self.assertEqual(sum((corners == [2, 2]).all(axis=1)), 2)

    @absltest.skipIf(coco is None, "needs the extra coco")
    def test_annotations_are_the_mask(self):
        rng = np.random.default_rng(0)
        label = rng.integers(0, 3, (24, 31)).astype(np.uint8)
        label[:12] = label[:12].repeat(3, 0)[:12]
        label[2:9, 3:12] = 2
        label[4:6, 5:7] = 0                       # a hole
        label[20:, :4] = 255
        annotations = coco_annotations(label)
        kinds = {type(x["segmentation"]) for x in annotations}
        self.assertEqual(kinds, {list, dict})
        seen = np.full(label.shape, 255, np.uint8)
        for x in annotations:
            region = pixels(x, label.shape)
            self.assertEqual(region.sum(), x["area"])
            self.assertTrue((seen[region] == 255).all())
            seen[region] = x["category_id"] - 1
            left, top, width, height = x["bbox"]
            rows, columns = np.nonzero(region)
            self.assertEqual((left, top, left + width - 1, top + height - 1),
                             (columns.min(), rows.min(), columns.max(), rows.max()))
        np.testing.assert_array_equal(seen, label)


if __name__ == "__main__":
    absltest.main()
