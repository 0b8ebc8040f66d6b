"""Tiles cover an image, and their answers are blended to one."""

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.data.tiles import Tiles


class TilesTest(parameterized.TestCase):

    @parameterized.parameters(((100, 161), 32, 8), ((20, 20), 32, 8), ((64, 65), 32, 7),
                              ((50, 33), 30, 1))
    def test_what_is_seen_of_pixels_comes_back_to_them(self, size, side, cells):
        rows, columns = np.indices(size)
        image = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
        pitch = max(1, round(side / cells))
        tiles = Tiles(image, side, (pitch * cells, pitch * cells), cells)
        for i in range(len(tiles)):
            tile = tiles[i].astype(float)
            tiles.add(i, tile.reshape(cells, pitch, cells, pitch, 3).mean(axis=(1, 3)))
        self.assertTrue(all(np.array(tiles.extent) >= size))
        whole = tiles.blended()
        self.assertEqual(whole.shape, (*tiles.grid, 3))
        inside = tuple(np.s_[:length // pitch] for length in size)
        for axis, values in ((0, rows), (1, columns)):
            wanted = values[:size[0] // pitch * pitch, :size[1] // pitch * pitch]
            wanted = wanted.reshape(size[0] // pitch, pitch, -1, pitch).mean(axis=(1, 3))
            np.testing.assert_allclose(whole[inside][..., axis], wanted, atol=1e-4)

    def test_a_seam_is_a_slope(self):
        tiles = Tiles(np.zeros((32, 48, 3), np.uint8), 32, (32, 32), 8)
        self.assertLen(tiles, 2)
        for i in range(2):
            tiles.add(i, np.full((8, 8, 1), float(i), np.float32))
        row = tiles.blended()[0, :, 0]
        self.assertEqual((row[3], row[8]), (0, 1))
        np.testing.assert_allclose(row[4:8], [1 / 8, 3 / 8, 5 / 8, 7 / 8], atol=1e-6)
        with self.assertRaises(IndexError):
            tiles[2]


if __name__ == "__main__":
    absltest.main()
