"""The viewer's HTTP server: on this machine alone, pictures by number, names saved by its own page.

    GET  /                     the page
    GET  /api/state            what there is: images, clusters, colours
    GET  /api/names            names and merges, and their revision
    POST /api/names            {"names": {...}, "merged": {...}, "revision": ...}: saves them
    GET  /photo/3 /thumb/3     JPEG
    GET  /truth/3 /clusters/3  bytes: ids row by row; the header X-Size is "height width"

No request names a file. Other pages in the same browser can neither read (what is asked for under
another host's name is refused, so is what another site asks for) nor write (a token that only this
page has must come along).
"""

import hashlib
import http.server
import json
import re
import secrets
import sys
import threading

from fs4_jax.cluster_names import check_cluster_names, write_cluster_names
from fs4_jax.config import ConfigError
from fs4_jax.data.folder import DataError, UnreadableImage
from fs4_jax.viewer.gallery import THUMBNAIL_SIDE, Refused
from fs4_jax.viewer.page import PAGE

LOOPBACK = "127.0.0.1"
_HOSTS = (LOOPBACK, "localhost")
_LARGEST_REQUEST = 1 << 20       # bytes
_SILENCE = 30                    # seconds until a connection that says nothing is closed
_NUMBERED = re.compile(r"/(photo|thumb|truth|clusters)/([0-9]{1,9})")


def make_server(gallery, port=0):
    """An http.server of a Gallery on 127.0.0.1; port 0 takes a free one (`server_port`).

    Raises ConfigError where the port can not be had.
    """
    handler = type("Handler", (_Handler,), {
        "gallery": gallery, "token": secrets.token_hex(16), "saving": threading.Lock()})
    try:
        server = http.server.ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError as error:
        raise ConfigError(f"--port={port} of {LOOPBACK} can not be had ({error.strerror}): "
                          "another program may use it; give another --port") from error
    server.daemon_threads = True
    return server


class _Reply(Exception):
    """Ends a request with a status and a reason."""

    def __init__(self, status, reason, **more):
        super().__init__(reason)
        self.status, self.body = status, {"error": reason, **more}


class _Handler(http.server.BaseHTTPRequestHandler):
    """gallery: what is shown. token: what the page must send to save. saving: a lock."""
    gallery, token, saving = None, "", None
    protocol_version, timeout, server_version = "HTTP/1.1", _SILENCE, "fs4_jax"

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def log_message(self, *args):
        pass

    # ---- requests -------------------------------------------------------------------------------

    def _get(self):
        numbered = _NUMBERED.fullmatch(self.path)
        if numbered:
            self._send_picture(numbered[1], int(numbered[2]))
        elif self.path == "/":
            nonce = secrets.token_hex(16)
            page = PAGE.replace("NONCE", nonce).replace("TOKEN", self.token)
            self._send(200, "text/html; charset=utf-8", page.encode(), nonce=nonce)
        elif self.path == "/api/state":
            self._send_json(200, self.gallery.state())
        elif self.path == "/api/names":
            self._send_json(200, self._names())
        else:
            raise _Reply(404, f"there is nothing at {self.path[:200]}")

    def _post(self):
        body = self._body()                     # read, whatever comes of it
        if self.path != "/api/names":
            raise _Reply(404, f"nothing is saved at {self.path[:200]}")
        if not secrets.compare_digest(self.headers.get("X-Token", "").encode(),
                                      self.token.encode()):
            raise _Reply(403, "this page is of an earlier start of the viewer: load it again")
        if self.headers.get_content_type() != "application/json":
            raise _Reply(415, "names are sent as application/json")
        try:
            content = json.loads(body)
            revision = content.pop("revision")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise _Reply(400, f"names must be a JSON object with a revision ({error})") from error
        gallery = self.gallery
        with self.saving:
            now = self._names()
            if revision != now["revision"]:
                raise _Reply(409, "names were changed elsewhere, in another window say", **now)
            write_cluster_names(gallery.workdir, check_cluster_names(
                content, gallery.num_clusters, "names not saved"))
            saved = self._names()
        self._send_json(200, saved)

    def _names(self):
        text = self.gallery.names().to_json()
        return json.loads(text) | {"revision": hashlib.sha256(text.encode()).hexdigest()}

    def _body(self):
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _LARGEST_REQUEST:
            self.close_connection = True
            raise _Reply(413, f"a request has at most {_LARGEST_REQUEST} bytes, and says how many")
        return self.rfile.read(int(length))

    def _check_sender(self):
        """That the page, and not another site through this browser, asks."""
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
            raise _Reply(403, f"this is {' or '.join(_HOSTS)}, not {host[:200]}")
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}" or \
                self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Reply(403, "another site asked")

    # ---- answers --------------------------------------------------------------------------------

    def _answer(self, function):
        try:
            self._check_sender()
            function()
        except _Reply as reply:
            self._send_json(reply.status, reply.body)
        except Refused as error:
            self._send_json(403, {"error": str(error)})
        except (ConfigError, DataError, UnreadableImage) as error:
            self._send_json(422, {"error": str(error)})
        except (ConnectionError, TimeoutError):
            self.close_connection = True        # the browser went on to the next picture
        except OSError as error:
            print(f"\nerror: {error}", file=sys.stderr)
            self._send_json(500, {"error": str(error)})

    def _send_picture(self, kind, i):
        gallery = self.gallery
        if i >= len(gallery) or (kind == "truth" and not gallery.has_truth):
            raise _Reply(404, f"there is no {kind} {i}")
        if kind in ("photo", "thumb"):
            picture = gallery.photo(i, THUMBNAIL_SIDE) if kind == "thumb" else gallery.photo(i)
            self._send(200, "image/jpeg", picture)
        else:
            ids = getattr(gallery, kind)(i)
            self._send(200, "application/octet-stream", ids.tobytes(),
                       size="{} {}".format(*ids.shape))

    def _send_json(self, status, content):
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status, kind, body, *, nonce="", size=""):
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": f"default-src 'none'; script-src {own}; style-src {own}; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if size:
            self.send_header("X-Size", size)
        self.end_headers()
        self.wfile.write(body)
