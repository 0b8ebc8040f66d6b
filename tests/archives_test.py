"""Tests of fs4_jax.archives: the same content is the same bytes."""

import io
import time
import zipfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.archives import write_npz


class ArchivesTest(parameterized.TestCase):

    @parameterized.parameters(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    def test_the_same_bytes_at_any_time(self, compression):
        arrays = {"a": np.zeros((40, 50), np.float16), "b/c": np.array(["x", "yz"])}
        written = []
        for year in (2001, 2031):
            with mock.patch.object(time, "time", lambda: (year - 1970) * 365 * 86400.0):
                written.append(io.BytesIO())
                write_npz(written[-1], list(arrays.items())[:1], iter(list(arrays.items())[1:]),
                          compression=compression)
        self.assertEqual(written[0].getvalue(), written[1].getvalue())
        self.assertEqual(len(written[0].getvalue()) < 4000, compression == zipfile.ZIP_DEFLATED)
        with np.load(io.BytesIO(written[0].getvalue())) as read:
            self.assertEqual(read.files, list(arrays))
            for name, array in arrays.items():
                np.testing.assert_array_equal(read[name], array)


if __name__ == "__main__":
    absltest.main()
