"""Tests of fs4_jax.evaluation.report."""

import dataclasses
import html.parser
import math
import pathlib
import re
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.evaluation import report, report_charts, report_training

NASTY = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "img", "input"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and gathers text, attributes and tags."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, (tag, self.stack, self.getpos())
        self.stack.pop()

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.text += data + "\n"

    def headings(self):
        return [s for s in self.text.split("\n") if s.strip()]


def history(n, num_clusters=3):
    return [{"step": i + 1, "time": 1e9 + i, "loss": 3.0 - i / n, "loss_pixel": 1.0 + i % 7,
             "loss_pgg": 0.4, "learning_rate": 1e-4, "grad_norm": 2.0,
             "assignment_entropy": 0.9 * math.log(num_clusters), "clusters_used": num_clusters,
             "largest_cluster_share": 0.4, "components_per_image": 12.0,
             "images_per_second": 38.0, "data_wait_share": 0.03, "step_seconds": 0.4}
            for i in range(n)]


def evaluation(num_clusters=4):
    """Clusters 2, 0, 1 are classes 0, 1, 2; others have none."""
    matching = [1, 2, 0] + [-1] * (num_clusters - 3)
    confusion = np.ones((num_clusters, 3), int)
    confusion[np.arange(3), matching[:3]] = 8
    return {"protocol": "p", "split": "val", "num_images": 7, "step": 600, "miou": 40.25,
            "accuracy": 60.5, "per_class_iou": {"sky": 12.5, NASTY: 61.0, "tree": None},
            "floors": {"kmeans_plain": {"miou": 28.0, "accuracy": 50.0},
                       "kmeans_strong": {"miou": 30.0, "accuracy": 62.0},
                       "kmeans_rgb": {"miou": 10.0, "accuracy": None}},
            "matching": matching, "class_names": ["sky", NASTY, "tree"],
            "confusion": confusion.tolist(), "num_clusters": num_clusters, "num_classes": 3}


def picture(truth=True):
    generator = np.random.default_rng(0)
    label = np.zeros((24, 32), np.uint8)
    label[:12], label[:, 20:], label[:3, :3] = 1, 2, 255
    prediction = np.array([2, 0, 1])[np.where(label == 255, 0, label)]   # what `matching` undoes
    return report.Picture(NASTY, generator.integers(0, 255, (24, 32, 3), dtype=np.uint8),
                          label if truth else None, prediction)


CLUSTERS = {"share": [0.4, 0.3, 0.2, 0.1], "mean_colour": [[9, 8, 7]] * 4}


class ReportTest(parameterized.TestCase):

    def write(self, **kwargs):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "new"
        path = folder / "report.html"
        arguments = {"title": NASTY, "config": {"num_clusters": 4, "fs4": {"pgg": {"weight": 0.5}}},
                     "history": history(50), "evaluation": evaluation(), "pictures": [picture()],
                     "clusters": CLUSTERS, "environment": {"commit": NASTY, "jax": "0.10.2"}}
        report.write_report(path, **{**arguments, **kwargs})
        self.assertEqual([p.name for p in path.parent.iterdir()], ["report.html"])
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        self.assertNotIn("script", page.tags)
        self.assertNotIn("link", page.tags)
        self.assertNotRegex(text, r"https?://|@import")
        for _, name, value in page.attributes:
            if name in ("src", "href"):
                self.assertStartsWith(value, "data:image/")
        for url in re.findall(r"url\(([^)]{0,20})", text):
            self.assertStartsWith(url, "data:image/")
        self.assertNotRegex(page.text + str([a for a in page.attributes if a[1] == "d"]), r"\bnan")
        return page

    def test_all_sections(self):
        page = self.write()
        for text in ("Pictures", "IoU of each class", "Clusters against classes", "Clusters",
                     "Training", "Collapse and clutter", "Speed", "Config", "Environment",
                     "40.2", "+10.2 points", "-1.5 points", "fs4.pgg.weight", "0.10.2",
                     "truth", "prediction", "not labelled", "not present",
                     "cluster 2 → sky", "cluster 3 → no class"):
            self.assertIn(text, page.text)
        self.assertIn(NASTY, page.headings())
        self.assertNotIn("overlay", page.headings())
        self.assertNotIn("Where it fails", page.text)

    def test_the_floors_are_named_and_the_ceiling_says_that_it_reads_labels(self):
        scores = evaluation() | {"flip": True, "crf": True,
                                 "floors_fitted_to": "the training split",
                                 "probes": {"linear": {"miou": 56.5, "accuracy": 89.9}}}
        page = self.write(evaluation=scores)
        for text in ("plain k-means on its tokens", "strong k-means on its tokens",
                     "k-means on RGB", "against strong k-means on its tokens", "56.5 %",
                     "linear probe, labelled", "probes read labels",
                     "protocol p, mirrored images averaged, CRF",
                     "Floors are fitted to the training split", "strong: whitened too"):
            self.assertIn(text, page.text)
        self.assertNotIn("probes read labels", self.write().text)

    def test_a_full_bar_is_100_percent(self):
        page = self.write()
        fills = re.findall(r"width:([\d.]+)%", " ".join(
            value for tag, name, value in page.attributes if (tag, name) == ("i", "style")))
        self.assertContainsSubset({"40.25", "28.00", "60.50", "12.50", "61.00"}, fills)

    def test_labels_of_ticks_have_room(self):
        """The narrowest chart has letters of 14 of the drawing's units."""
        series = report_charts.Series("", np.arange(4), np.array([0, 3, 7, 10]) * 1e-4)
        drawn = report_charts.line_chart("rate", [series])
        for x, label in re.findall(r'<text class="tick" x="(\d+)"[^>]*end">([^<]+)<', drawn):
            self.assertGreater(float(x), 0.6 * 14 * len(label), label)

    def test_failures_have_a_section(self):
        missed = dataclasses.replace(picture(), name="missed.png",
                                     prediction=np.full((24, 32), 3))
        page = self.write(failures=[missed])
        self.assertLess(page.text.index("Where it fails"), page.text.index("missed.png"))
        self.assertIn("0 %", page.headings())

    def test_the_matching_is_applied_to_pictures(self):
        self.assertIn("100 %", self.write().headings())
        swapped = evaluation() | {"matching": [2, 1, 0, -1]}
        self.assertNotIn("100 %", self.write(evaluation=swapped).headings())

    def test_names_and_merges_are_shown_and_not_scored(self):
        """Cluster 3 has no class; it is shown as cluster 0, which is class 1."""
        plain = self.write(pictures=[picture()])
        told = self.write(pictures=[picture()], clusters=CLUSTERS | {
            "names": {0: "lawn", 3: "shade"}, "merged": {3: 0}})
        self.assertIn(f"cluster 0, “lawn” → {NASTY}", told.text)
        self.assertIn(f"cluster 3, “shade” → no class (shown as {NASTY})", told.text)
        for page in plain, told:
            self.assertIn("% of labelled pixels right", " ".join(page.text.split()))
        self.assertEqual(*([line for line in page.headings() if "%" in line or "40.3" in line]
                           for page in (plain, told)))

    def test_a_cluster_without_labels_has_the_name_it_was_given(self):
        page = self.write(evaluation=None, pictures=[picture(truth=False)], clusters=CLUSTERS | {
            "names": {1: "tree"}, "merged": {2: 1}})
        self.assertNotIn("cluster 2\n", page.text.split("Clusters")[0])       # in the legend
        self.assertIn("tree", page.text.split("Clusters")[0])

    def test_confusion_rows_follow_the_classes(self):
        page = self.write()
        rows = [s for s in page.headings() if re.match(r"\d → ", s)]
        self.assertEqual(list(dict.fromkeys(r[0] for r in rows)), ["2", "0", "1", "3"])
        self.assertIn("80", page.headings())                  # 8 of 10 pixels of a cluster

    def test_without_labels(self):
        for pictures in ([picture(truth=False)], [picture()]):
            page = self.write(evaluation=None, pictures=pictures)
            for text in ("mIoU", "IoU of each class", "Clusters against classes", "→ no class",
                         "not labelled", "labelled pixels"):
                self.assertNotIn(text, page.text)
            self.assertIn("overlay", page.headings())
            self.assertIn("cluster 3", page.headings())

    def test_bare(self):
        page = self.write(evaluation=None, pictures=[], clusters=None, history=[], config={},
                          environment={})
        self.assertEqual(page.text.count(NASTY), 2)           # <title> and heading
        self.assertNotIn("section", page.tags)

    def test_evaluation_with_holes(self):
        page = self.write(evaluation={"miou": None, "accuracy": "nan", "floors": None}, clusters={})
        self.assertIn("–", page.text)

    @parameterized.parameters(1, 2, 2000)
    def test_history_of_any_length(self, n):
        page = self.write(history=history(n))
        lines = [value for tag, name, value in page.attributes if tag == "path" and name == "d"]
        self.assertNotEmpty(lines)
        self.assertLessEqual(max(line.count("L") for line in lines), report_charts.MAX_POINTS)
        self.assertIn("images a second", page.text)

    def test_history_with_holes(self):
        rows = history(30)
        rows[3]["loss_pgg"], rows[4]["grad_norm"] = "nan", None
        del rows[5]["loss_pixel"]
        rows += [{"step": 31}, {"step": "inf", "loss": "nan"}, {}]
        for row in rows:
            row["loss_kernel"] = "-inf"
        page = self.write(history=rows)
        self.assertIn("1 value not finite.", page.text)
        self.assertNotIn("kernel", page.text)                 # nothing to draw

    def test_many_clusters(self):
        shares = {"share": [1 / 300] * 300}
        page = self.write(evaluation=evaluation(300), clusters=shares)
        self.assertIn("252 more clusters are not shown", page.text)
        self.assertIn("and 252 more clusters", page.text)

    def test_cluster_ids_below_zero(self):
        nothing = report.Picture("a", np.zeros((8, 8, 3), np.uint8), None, np.full((8, 8), -1))
        page = self.write(pictures=[nothing], evaluation=None, clusters=None)
        self.assertIn("overlay", page.text)

    def test_large_pictures_shrink(self):
        big = np.zeros((900, 1800), np.int32)
        big[:, 900:] = 2
        photo = np.zeros((900, 1800, 3), np.uint8)
        page = self.write(pictures=[report.Picture("a", photo, big.astype(np.uint8), big)])
        self.assertIn(("figure", "style", "--ratio:520/260"), page.attributes)

    def test_sizes_that_differ_are_named(self):
        bad = report.Picture("one.jpg", np.zeros((4, 4, 3), np.uint8), None, np.zeros((4, 5), int))
        with self.assertRaisesRegex(ValueError, "'one.jpg'.*differ in size"):
            self.write(pictures=[bad])


class DiagnosisTest(parameterized.TestCase):

    @parameterized.parameters(
        ([0.4, 0.3, 0.2, 0.1], "good", "All 4 clusters are in use; the largest holds 40 %"),
        ([0.5, 0.3, 0.2, 0.0], "good", "3 of 4 clusters"),
        ([1.0, 0.0, 0.0, 0.0], "warn", "1 of 4 clusters.*Look at.*fs4.sinkhorn.*num_clusters"),
        ([0.7, 0.1, 0.1, 0.1], "warn", "holds 70 %.*fs4.pgg.weight"))
    def test_shares(self, share, level, text):
        found = report_training.diagnose([], 4, {"share": share},
                                         {"method": "fs4", "fs4": {}})
        self.assertEqual(found[0], level)
        self.assertRegex(found[1], text)

    def test_history_alone(self):
        rows = history(3, num_clusters=9)
        self.assertRegex(report_training.diagnose(rows, 9, None, {})[1], "All 9 .* 40 %")
        rows[-1]["clusters_used"] = 2
        level, text = report_training.diagnose(rows, 9, None, {"dino": {}})
        self.assertEqual(level, "warn")
        self.assertNotIn("fs4", text)
        rows[1]["loss"] = "nan"
        text = report_training.diagnose(rows, 9, CLUSTERS, {})[1]
        self.assertIn("at step 2: lower the learning", text)

    def test_what_was_warned_of_in_training_is_kept(self):
        rows = history(90, num_clusters=9)
        rows[20]["warning_few_clusters"] = 3.5
        level, text = report_training.diagnose(rows, 9, {"share": [1 / 9] * 9}, {})
        self.assertEqual(level, "good")                       # it is over
        self.assertRegex(text, "^All 9 .* Warned in training: at step 21: 3.5 of 9 clusters")
        for row in rows[40:45]:
            row["warning_large_cluster"] = 0.72
        text = report_training.diagnose(rows, 9, None, {})[1]
        self.assertIn("at step 41: the largest cluster holds 72 %", text)
        self.assertIn("and 3 more times", text)

    def test_nothing_known(self):
        self.assertEqual(report_training.diagnose([], 0, None, {}), ("good", ""))


class ChartTest(parameterized.TestCase):

    @parameterized.parameters((0, 1), (0.3, 0.31), (-5, 12345), (1e-6, 3e-6), (7, 7.5), (1, 2001))
    def test_ticks_are_round_and_inside(self, low, high):
        ticks = report_charts._ticks(low, high, 5)
        self.assertBetween(len(ticks), 2, 7)
        self.assertTrue(all(low - 1e-9 <= t <= high * (1 + 1e-9) for t in ticks))
        texts = [report_charts._tick(t, ticks) for t in ticks]
        self.assertLen(set(texts), len(ticks))
        np.testing.assert_allclose([float(t.replace(",", "")) for t in texts], ticks, rtol=1e-6)

    def test_spikes_survive_in_the_raw_line_and_not_in_the_smooth_one(self):
        y = np.ones(5000)
        y[2345] = 50.0
        x = np.arange(5000.0)
        self.assertEqual(report_charts._envelope(x, y)[1].max(), 50.0)
        self.assertEqual(report_charts._smooth(x, y)[1].max(), 1.0)

    def test_a_gap_where_a_value_is_not_finite(self):
        x = np.arange(5.0)
        path = report_charts._path(x, np.array([1, 2, np.nan, 3, 4]), float, float)
        self.assertEqual(path, "M0.0 1.0L1.0 2.0M3.0 3.0L4.0 4.0")

    @parameterized.parameters((0, "0"), (2.3456, "2.35"), (0.0971, "0.0971"), (123.4, "123"),
                              (999.7, "1000"), (12000, "12,000"), (2.5e-5, "2.5e-5"),
                              (3e-5, "3e-5"), (float("nan"), "–"))
    def test_format_number(self, value, text):
        self.assertEqual(report_charts.format_number(value), text)


if __name__ == "__main__":
    absltest.main()
