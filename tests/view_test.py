"""The viewer: what it shows, what it refuses, and the page in a browser where there is one."""

import http.client
import io
import json
import pathlib
import shutil
import tempfile
import threading

import numpy as np
import scipy.ndimage
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax import view
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.cluster_names import FILE, ClusterNames, read_cluster_names
from fs4_jax.config import ConfigError, remember_config
from fs4_jax.data.folder import DataError
from fs4_jax.data.sources import make_source
from fs4_jax.evaluation.pictures import palette
from fs4_jax.predict import predict
from fs4_jax.run import prepare, remember_encoder
from fs4_jax.viewer.server import make_server
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401
from tests.predict_test import write_training_set
from tests.train_test import quietly, tiny_config

CLUSTERS = 4
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def untrained_workdir(workdir, config):
    """A workdir as training leaves it, with the checkpoint of step 0."""
    run = prepare(config)
    workdir.mkdir()
    remember_config(config, workdir)
    remember_encoder(run, workdir)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, run.create_state(),
                         iter(run.views(make_source(config.data, "train"), 0)))


class ViewTest(parameterized.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dir = pathlib.Path(folder.name).resolve()
        write_training_set(cls.dir / "set")
        config = tiny_config(num_clusters=CLUSTERS)
        config.data.name = "folder"
        config.data.images, config.data.labels = f"{cls.dir}/set/images", f"{cls.dir}/set/labels"
        config.data.class_names = ("sky", "road")
        cls.workdir = cls.dir / "work"
        untrained_workdir(cls.workdir, config)
        cls.gallery = view.make_gallery(cls.workdir)
        cls.server = cls.enterClassContext(make_server(cls.gallery))
        cls.port = cls.server.server_port
        thread = threading.Thread(target=cls.server.serve_forever, daemon=True)
        thread.start()
        cls.addClassCleanup(thread.join)
        cls.addClassCleanup(cls.server.shutdown)

    def setUp(self):
        super().setUp()
        (self.workdir / FILE).unlink(missing_ok=True)

    def ask(self, path, *, method="GET", body=None, **headers):
        """(status, headers, body) of a request; headers with _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=body, headers={
                name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def names(self):
        return json.loads(self.ask("/api/names")[2])

    def save(self, content, **headers):
        headers = {"Content_Type": "application/json", "X_Token": self.server_token(), **headers}
        status, _, answer = self.ask("/api/names", method="POST", body=json.dumps(content),
                                     **{k: v for k, v in headers.items() if v is not None})
        return status, json.loads(answer)

    def server_token(self):
        return self.server.RequestHandlerClass.token

    # ---- what it shows --------------------------------------------------------------------------

    def test_the_page_needs_nothing_from_elsewhere(self):
        status, headers, page = self.ask("/")
        self.assertEqual(status, 200)
        self.assertIn(self.server_token().encode(), page)
        self.assertNotRegex(page.decode(), "https?://")
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        nonce = headers["Content-Security-Policy"].split("'nonce-")[1].split("'")[0]
        self.assertIn(f'<script nonce="{nonce}">', page.decode())
        self.assertNotIn(nonce.encode(), self.ask("/")[2])      # drawn anew

    def test_state(self):
        state = json.loads(self.ask("/api/state")[2])
        self.assertEqual(state["images"], [str(i) for i in range(9)])
        self.assertEqual([c["name"] for c in state["classes"]], ["sky", "road"])
        self.assertEqual([c["name"] for c in state["clusters"]],
                         [f"cluster {k}" for k in range(CLUSTERS)])

    def test_pictures(self):
        status, headers, photo = self.ask("/photo/2")
        self.assertEqual((status, headers["Content-Type"]), (200, "image/jpeg"))
        self.assertTrue(photo.startswith(b"\xff\xd8"))
        _, headers, truth = self.ask("/truth/2")
        self.assertEqual(headers["X-Size"], "48 48")
        with Image.open(self.dir / "set/labels/2.png") as label:
            self.assertEqual(truth, np.asarray(label).tobytes())

    def test_clusters_are_those_that_predict_writes(self):
        quietly(predict, self.workdir, self.dir / "set/images", self.dir / "masks of predict")
        for i in (0, 5):
            ids = np.frombuffer(self.ask(f"/clusters/{i}")[2], np.uint8)
            with Image.open(self.dir / f"masks of predict/masks/{i}.png") as mask:
                np.testing.assert_array_equal(ids.reshape(48, 48), np.asarray(mask))
        self.assertGreater(len(np.unique(ids)), 1)

    # ---- what it saves --------------------------------------------------------------------------

    def test_names_and_merges_reach_masks(self):
        names = {"names": {"2": "Straße"}, "merged": {"0": 2, "1": 2}}
        status, saved = self.save({**names, "revision": self.names()["revision"]})
        self.assertEqual(status, 200)
        self.assertEqual(saved, self.names())
        self.assertEqual(read_cluster_names(self.workdir, CLUSTERS),
                         ClusterNames({2: "Straße"}, {0: 2, 1: 2}))
        out = self.dir / "named"
        quietly(predict, self.workdir, self.dir / "set/images", out)
        classes = {c["id"]: c["name"] for c in json.loads((out / "classes.json").read_text())}
        self.assertEqual(classes[2], "Straße")
        for path in (out / "masks").glob("*.png"):
            with Image.open(path) as mask:
                self.assertContainsSubset(set(np.unique(mask).tolist()), {2, 3})

    def test_two_windows_do_not_overwrite_each_other(self):
        old = self.names()["revision"]
        self.assertEqual(self.save({"names": {"1": "a"}, "revision": old})[0], 200)
        status, answer = self.save({"names": {"1": "b"}, "revision": old})
        self.assertEqual(status, 409)
        self.assertEqual(answer["names"], {"1": "a"})           # what the window then shows
        self.assertEqual(self.save({"names": {"1": "b"}, "revision": answer["revision"]})[0], 200)

    @parameterized.parameters(
        (None, 400), ({}, 400), ([], 400), ({"names": {"99": "a"}}, 422),
        ({"merged": {"0": 1, "1": 0}}, 422), ({"names": {"0": "x" * 100}}, 422))
    def test_names_that_are_none(self, content, status):
        if isinstance(content, dict) and content:
            content["revision"] = self.names()["revision"]
        answer = self.save(content)
        self.assertEqual(answer[0], status)
        self.assertTrue(answer[1]["error"])
        self.assertFalse((self.workdir / FILE).exists())

    # ---- what it refuses ------------------------------------------------------------------------

    @parameterized.parameters(
        "/../../etc/passwd", "//etc/passwd", "/etc/passwd", "/photo/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd", "/photo/%2e%2e", "/photo/0/../1", "/photo/-1", "/photo/9",
        "/photo/0.jpg", "/photo/1e0", "/photo/99999999999999999999", "/config.json",
        "/api/state?x=/etc/passwd", "http://127.0.0.1/etc/passwd",
        "/clusters.json")
    def test_paths_lead_nowhere(self, path):
        status, _, body = self.ask(path)
        self.assertEqual(status, 404)
        self.assertNotIn(b"root:", body)

    def test_links_out_of_the_folder(self):
        outside, images = self.dir / "outside.png", self.dir / "with links"
        shutil.copy(self.dir / "set/images/0.png", outside)
        images.mkdir()
        (images / "out.png").symlink_to(outside)
        (images / "up.png").symlink_to("../set/images/1.png")
        shutil.copy(self.dir / "set/images/2.png", images / "within.png")
        (images / "within too.png").symlink_to("within.png")
        gallery = view.make_gallery(self.workdir, str(images))
        with make_server(gallery) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.addCleanup(setattr, self, "port", self.port)
            self.port = server.server_port
            names = json.loads(self.ask("/api/state")[2])["images"]
            for kind in ("photo", "thumb", "clusters"):
                for i, name in enumerate(names):
                    status, _, body = self.ask(f"/{kind}/{i}")
                    self.assertEqual(status, 200 if "within" in name else 403, name)
                    if status == 403:
                        self.assertIn(b"outside of", body)
            self.assertEqual(self.ask("/truth/2")[0], 404)      # a folder without labels
            server.shutdown()

    def test_a_link_in_the_place_of_the_names(self):
        outside = self.dir / "outside.json"
        outside.write_text('{"names": {"0": "secret"}}')
        (self.workdir / FILE).symlink_to(outside)
        self.assertEqual(self.ask("/api/names")[0], 403)
        self.assertEqual(self.save({"revision": ""})[0], 403)
        self.assertIn("secret", outside.read_text())

    @parameterized.parameters(
        dict(Host="evil.example"), dict(Host="evil.example:8000"), dict(Host="127.0.0.1.evil.org"),
        dict(Host="localhost.evil.org:1"), dict(Host=""), dict(Origin="http://evil.example"),
        dict(Origin="null"), dict(Sec_Fetch_Site="cross-site"), dict(Sec_Fetch_Site="same-site"))
    def test_other_sites(self, **headers):
        for path in ("/", "/api/state", "/photo/0"):
            self.assertEqual(self.ask(path, **headers)[0], 403)
        revision = self.names()["revision"]
        self.assertEqual(self.save({"names": {"1": "a"}, "revision": revision}, **headers)[0], 403)
        self.assertFalse((self.workdir / FILE).exists())

    @parameterized.parameters("localhost", "localhost:1234", "127.0.0.1:9")
    def test_through_a_tunnel(self, host):
        self.assertEqual(self.ask("/api/names", Host=host, Origin=f"http://{host}")[0], 200)

    @parameterized.parameters(
        (dict(X_Token=None), 403), (dict(X_Token="0" * 32), 403), (dict(X_Token="ä"), 403),
        (dict(Content_Type="text/plain"), 415), (dict(Content_Length="9999999"), 413))
    def test_saving_needs_the_page(self, headers, status):
        revision = self.names()["revision"]
        self.assertEqual(self.save({"names": {"1": "a"}, "revision": revision}, **headers)[0],
                         status)
        self.assertFalse((self.workdir / FILE).exists())

    def test_other_methods_and_places(self):
        self.assertEqual(self.ask("/api/names", method="PUT", body="{}")[0], 501)
        self.assertEqual(self.ask("/api/state", method="POST", body="{}")[0], 404)
        self.assertEqual(self.server.server_address[0], "127.0.0.1")

    def test_an_image_that_can_not_be_read(self):
        images = self.dir / "torn"
        images.mkdir()
        (images / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        gallery = view.make_gallery(self.workdir, str(images))
        with make_server(gallery) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.addCleanup(setattr, self, "port", self.port)
            self.port = server.server_port
            status, _, body = self.ask("/clusters/0")
            self.assertEqual(status, 422)
            self.assertIn(b"torn.png", body)
            server.shutdown()

    def test_what_can_not_work(self):
        moved = self.dir / "moved"
        shutil.copytree(self.workdir, moved)
        config = json.loads((moved / "config.json").read_text())
        config["data"]["images"] = "/nowhere"
        (moved / "config.json").write_text(json.dumps(config))
        with self.assertRaisesRegex(DataError, "--images=DIR"):
            view.make_gallery(moved)
        with self.assertRaisesRegex(DataError, r"\(--images\) is not a folder"):
            view.make_gallery(self.workdir, "/nowhere")
        with self.assertRaisesRegex(ConfigError, "config.json"):
            view.make_gallery(self.dir)
        with self.assertRaisesRegex(ConfigError, f"--port={self.port}"):
            make_server(self.gallery, self.port)


    # ---- with the mouse -------------------------------------------------------------------------

    def test_in_a_browser(self):
        page, told = self.open_page()
        rows = page.locator("#list li")
        self.assertEqual(rows.count(), CLUSTERS)
        self.assertEqual(page.locator("#films button").count(), 9)
        ids = np.frombuffer(self.ask("/clusters/0")[2], np.uint8).reshape(48, 48)
        first, other = np.unique(ids)[:2]

        with self.subTest("views"):
            page.get_by_role("button", name="prediction").click()
            np.testing.assert_array_equal(self.colours_of(page, ids, first), palette(4)[first])
            page.keyboard.press("1")
            with Image.open(self.dir / "set/images/0.png") as photo:
                mean = np.asarray(photo)[ids == first].mean(0)
            np.testing.assert_allclose(self.colours_of(page, ids, first), mean, atol=16)
            page.get_by_role("button", name="truth").click()
            with Image.open(self.dir / "set/labels/0.png") as label:
                np.testing.assert_array_equal(
                    self.colours_of(page, np.asarray(label), 1), palette(2)[1])
        with self.subTest("rename"):
            rows.nth(other).dblclick()
            page.keyboard.type("Straße")
            page.keyboard.press("Enter")
            rows.nth(other).get_by_text("Straße").wait_for()
            self.assertEqual(self.names()["names"], {str(other): "Straße"})
        with self.subTest("merge"):
            page.get_by_role("button", name="prediction").click()
            rows.nth(first).drag_to(rows.nth(other))
            page.locator(".parts button").wait_for()
            self.assertEqual(self.names()["merged"], {str(first): int(other)})
            page.mouse.move(5, 5)               # nothing is pointed at
            np.testing.assert_array_equal(self.colours_of(page, ids, first), palette(4)[other])
        with self.subTest("another image, another visit"):
            page.get_by_role("button", name="next").click()
            page.get_by_text("2 of 9").wait_for()
            page.reload()
            page.locator(".parts button").wait_for()
            self.assertEqual(rows.count(), CLUSTERS - 1)
        with self.subTest("apart again, and undone"):
            page.locator(".parts button").click()
            page.locator(".parts").wait_for(state="detached")
            self.assertEqual(self.names()["merged"], {})
            page.get_by_role("button", name="undo").click()
            page.locator(".parts").wait_for()
            self.assertEqual(self.names()["merged"], {str(first): int(other)})
        self.assertEmpty([url for url in told["urls"] if not url.startswith(
            (f"http://127.0.0.1:{self.port}/", "data:"))])
        self.assertEmpty(told["errors"])

    def test_what_is_seen_before_the_first_clusters_are_there(self):
        held, released = [], []

        def hold(route):
            if released:
                route.continue_()
            else:
                held.append(route)

        page, told = self.open_page(lambda page: page.route("**/clusters/*", hold),
                                    "body[data-loading] li b")
        page.locator("canvas[height='48']").wait_for(state="attached")
        self.assertIn("finding its clusters", page.evaluate(
            "getComputedStyle(document.getElementById('caption'), '::after').content"))
        self.assertEqual(page.locator("li b").count(), CLUSTERS)
        released.append(True)
        for route in held:
            route.continue_()
        page.locator("body:not([data-loading])").wait_for(state="attached")
        self.assertEqual(page.evaluate(
            "getComputedStyle(document.getElementById('caption'), '::after').content"), "none")
        self.assertEmpty(told["errors"])

    def open_page(self, before=lambda page: None, ready="body:not([data-loading]) li small"):
        """(page of the viewer in headless Chromium, {"urls" asked for, "errors"}), or a skip.

        before: what is done to the page first. ready: what is waited for.
        """
        try:
            from playwright import sync_api
        except ImportError:
            self.skipTest("needs playwright: pip install playwright")
        playwright = self.enterContext(sync_api.sync_playwright())
        installed = next(filter(None, map(shutil.which, BROWSERS)), None)
        if not installed and not pathlib.Path(playwright.chromium.executable_path).exists():
            self.skipTest("no Chromium here: playwright install chromium")
        browser = playwright.chromium.launch(executable_path=installed, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        self.addCleanup(browser.close)
        page, told = browser.new_page(), {"urls": [], "errors": []}
        page.set_default_timeout(60_000)
        page.on("request", lambda request: told["urls"].append(request.url))
        page.on("pageerror", lambda error: told["errors"].append(str(error)))
        page.on("console", lambda message: told["errors"].append(message.text)
                if message.type == "error" else None)
        before(page)
        page.goto(f"http://127.0.0.1:{self.port}/")
        page.locator(ready).first.wait_for(state="attached")
        return page, told

    def colours_of(self, page, ids, k):
        """Mean colour on the screen of the inner pixels of id k, uint8 [3]."""
        shown = Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("RGB")
        side = min(shown.size)
        left, top = ((n - side) // 2 for n in shown.size)
        shown = np.asarray(shown.crop((left, top, left + side, top + side)).resize(
            (480, 480), Image.NEAREST))
        inner = scipy.ndimage.binary_erosion(np.kron(ids == k, np.ones((10, 10), bool)),
                                             iterations=12)
        self.assertTrue(inner.any())
        return np.round(shown[inner].mean(0)).astype(np.uint8)


if __name__ == "__main__":
    absltest.main()
