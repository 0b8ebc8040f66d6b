"""Tests of fs4_jax.whole_files: a name only for what is whole."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest

from fs4_jax.whole_files import WRITING, whole_file, write_whole


class WholeFilesTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path, "a.txt")

    def test_text_and_bytes(self):
        for content in ("Füße\n", b"\x00\xff"):
            write_whole(self.path, content)
            read = self.path.read_bytes()
            self.assertEqual(read, content if isinstance(content, bytes) else content.encode())
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_the_old_file_stays_until_the_new_one_is_whole(self):
        write_whole(self.path, "old")
        for error in (OSError, KeyboardInterrupt):
            with self.assertRaises(error), whole_file(self.path) as writing:
                writing.write_text("ne")
                raise error
            self.assertEqual(self.path.read_text(), "old")
            self.assertEqual(writing.name, f"a.txt{WRITING}")

    def test_durable_is_on_the_disk_before_it_has_its_name(self):
        calls = []
        with mock.patch.object(os, "fsync", lambda _: calls.append(self.path.exists())):
            write_whole(self.path, "new", durable=True)
            write_whole(self.path, "newer")
        self.assertEqual(calls, [False])


if __name__ == "__main__":
    absltest.main()
