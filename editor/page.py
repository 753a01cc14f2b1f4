"""The editor's page and its server: a Gradio app over sessions."""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from weakref import WeakValueDictionary

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # these are read on import
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_RUN_HISTORY"] = "False"  # a page that can send edits to another server

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from editor import markup
from editor.library import LibraryObject
from editor.scenes import MAX_BYTES, Scenes
from editor.session import DOWNLOADS, HINTS, NEEDS_CLASS, Session
from models.ui_model import UIModel
from util.errors import UserError
from util.progress import log

HERE = Path(__file__).parent
SCRIPT = (HERE / "page.js").read_text()
TILES = "tiles(element, trigger);"  # its function for styles, classes and objects
MAX_SESSIONS = 64  # windows in memory; the least recently used is dropped
MAX_RADIUS = 32  # of the brush, in pixels
ENCODED = 4  # windows whose images are also kept as data URLs
ENDED = "This session has ended; reload the page to start again."

# A random name of the window, which it keeps when the page is reloaded; none if it blocks cookies.
# A duplicated tab begins with a copy of the name, whose lock the first tab still holds.
WINDOW = """async () => {
  const random = () => String(crypto.getRandomValues(new Uint32Array(4)));
  const hold = (name) => new Promise((held, taken) => navigator.locks.request(
    name, { signal: AbortSignal.timeout(1000) }, () => new Promise(held)).catch(taken));
  try {
    const name = sessionStorage.editor ??= random();
    // locks: only where the page comes from this machine, or by HTTPS
    if (navigator.locks) await hold(name).catch(() => hold(sessionStorage.editor = random()));
    return [sessionStorage.editor];
  } catch { return [""]; }
}"""
# The browser itself refuses to send anything to another server
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; frame-ancestors 'self'; form-action 'self'"
)


class EditorPage:
    """The components and what happens on their events."""

    def __init__(self, ui: UIModel, scenes: Scenes, objects: list[LibraryObject]) -> None:
        self.ui = ui
        self.scenes = scenes
        self.objects = objects
        self.thumbnails = [markup.data_uri(one.thumbnail) for one in objects]
        self.windows: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._image_urls = lru_cache(ENCODED)(_image_urls)
        self.has_encoder = ui.has_features
        if self.has_encoder:
            try:
                ui.networks.load_encoder()
            except UserError as problem:
                log(f"styles cannot be taken from photographs: {problem}")
                self.has_encoder = False

    def build(self) -> gr.Blocks:
        name = self.ui.networks.folder.name
        title = f"{name} · editor"
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as app:
            self.session = gr.State()
            self._layout(name)
            self._wire(app)
        return app

    # -- what is on the page -----------------------------------------------------------------

    def _layout(self, name: str) -> None:
        with gr.Row(elem_id="bar"):
            title = f"Control individual objects of a scene · {escape(name)}"
            _part("", f"<h1>pix2pixHD editor</h1><p>{title}</p>", elem_id="title", min_width=280)
            self.scene = _dropdown(self.scenes.names, "Scene", "scene")
        self._lay_out_own_maps()
        self._lay_out_controls()
        self.hint = _part(elem_id="hint")
        stage = "keepOrder(); stage(element, trigger, watch); shortcuts(trigger);"
        self.stage = _part(stage, elem_id="stage")
        self.status = _part(elem_id="status")
        with gr.Column() as self.style_panel:
            self._lay_out_styles()
        with gr.Column(visible=False) as self.class_panel:
            self._lay_out_classes()
        with gr.Column(visible=False) as self.add_panel:
            self.scale = gr.Slider(0.25, 4, value=1, step=0.05, label="Size", elem_id="scale")
            self.library = _part(TILES, elem_id="library")
        with gr.Row(elem_id="downloads"):
            self.downloads = {
                kind: gr.Button(f"Save {what}", size="md", min_width=150)
                for kind, what in DOWNLOADS.items()
                if kind != "inst" or self.ui.has_instances
            }
        self.file = _part("download(props, watch);", visible="hidden", html_template="")

    def _lay_out_own_maps(self) -> None:
        file = partial(gr.File, height=120)
        with gr.Accordion("Open your own maps", open=not self.scenes.names, elem_id="own"):
            with gr.Row():
                self.label_file = file(label="Label map (PNG)", elem_id="own-label")
                self.inst_file = file(
                    label="Instance map (PNG)", visible=self.ui.has_instances, elem_id="own-inst"
                )
            self.open_own = gr.Button("Open these maps", elem_id="open-own")

    def _lay_out_controls(self) -> None:
        # the tools' label is only for screen readers
        bare = {"show_label": False, "container": False, "scale": 1, "min_width": 300}
        with gr.Row(elem_id="controls"):
            self.tool = gr.Radio(list(HINTS), value="Select", label="Tool", elem_id="tools", **bare)
            self.undo, self.redo, self.reset = (
                gr.Button(what, interactive=False, scale=0, min_width=90, elem_id=what.lower())
                for what in ("Undo", "Redo", "Reset")
            )

    def _lay_out_styles(self) -> None:
        self.gallery = _part(TILES, elem_id="gallery")
        self.whole_class = gr.Checkbox(
            label="Give the style to all objects of the class",
            visible=self.ui.styles_by_instance,
            elem_id="whole-class",
        )
        with gr.Accordion(
            "Style from a photograph", open=False, visible=self.has_encoder, elem_id="from-photo"
        ):
            photos = self.scenes.photos
            with gr.Row(elem_id="photo-sources"):
                self.photo_scene = _dropdown(photos, "Photograph of", "photo-scene")
                self.photo_file = gr.UploadButton(
                    "Upload a photograph", file_types=["image"], elem_id="photo-file"
                )
                self.all_styles = gr.Button(
                    "All styles from this scene's photograph",
                    visible=bool(photos),
                    elem_id="all-styles",
                )
            self.photo = _part("photograph(element, trigger);", elem_id="photo")

    def _lay_out_classes(self) -> None:
        with gr.Row():
            self.radius = gr.Slider(
                0, MAX_RADIUS, value=3, step=0.5, label="Brush radius in pixels", elem_id="radius"
            )
            self.like = gr.Button("Make it like another object ...", elem_id="like")
        self.classes = _part(TILES, elem_id="classes")

    # -- events ------------------------------------------------------------------------------

    def _wire(self, app: gr.Blocks) -> None:
        view = [
            *(self.scene, self.photo_scene, self.hint, self.stage, self.status),
            *(self.gallery, self.classes, self.library),
            *(self.photo, self.undo, self.redo, self.reset, self.radius, self.like),
            *(self.style_panel, self.class_panel, self.add_panel, self.file),
        ]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        # one queue for all actions: with several, Gradio takes them in any order
        ordered = {"concurrency_id": "actions", "concurrency_limit": 1, "trigger_mode": "multiple"}

        def on(
            event: Callable,
            action: Callable[..., str],
            *inputs: gr.components.Component,
            sent: Callable[[gr.EventData], object] | None = None,
        ) -> None:
            """Let an event carry out an action of the session, given what the event itself sent and
            the inputs' values, then generate missing previews. A gesture sends a single event."""

            def handler(session: Session | None, event: gr.EventData, *values: object) -> dict:
                def work() -> str:
                    first = [] if sent is None else [sent(event)]
                    return action(session, *first, *values)

                # with the session, or Gradio deletes it an hour after it began
                return {self.session: session, **self._act(session, work)}

            handler.__name__ = action.__name__  # what the server calls it
            outputs = [self.session, *view]
            done = event(handler, [self.session, *inputs], outputs, **ordered, **quiet)
            done.then(self.generate_gallery, [self.session], [self.gallery], **quiet)

        window = gr.Textbox(visible=False)
        begun = app.load(self.begin, [window], [self.session, *view], js=WINDOW, **quiet)
        begun.then(self.generate_gallery, [self.session], [self.gallery], **quiet)
        on(self.scene.input, Session.open_scene, self.scene)
        on(self.open_own.click, Session.open_upload, self.label_file, self.inst_file)
        on(self.tool.input, Session.choose_tool, self.tool)
        on(self.undo.click, Session.undo)
        on(self.redo.click, Session.redo)
        on(self.stage.undo, Session.undo)  # by keyboard
        on(self.stage.redo, Session.redo)
        on(self.reset.click, Session.reset)
        on(self.like.click, Session.start_copying)
        on(self.stage.draw, Session.pointer, self.radius, self.scale, sent=_drawn)
        on(self.gallery.choose, Session.choose_style, self.whole_class, sent=_number)
        on(self.classes.choose, Session.choose_label, sent=_number)
        on(self.library.choose, Session.choose_object, sent=_number)
        on(self.stage.stale, Session.refresh)
        on(self.photo_scene.input, Session.open_photo, self.photo_scene)
        on(self.photo_file.upload, Session.upload_photo, self.photo_file)
        on(self.all_styles.click, Session.take_all_styles)
        on(self.photo.draw, Session.take_style, sent=_points)
        for kind, button in self.downloads.items():
            on(button.click, Session.save, sent=lambda _, kind=kind: kind)

    def begin(self, window: str) -> dict:
        """A new window gets its own session, on the first scene; a reloaded one keeps its own."""
        session = self.windows.get(window) or Session(self.ui.another(), self.scenes, self.objects)
        if window:
            self.windows[window] = session
        return {self.session: session, **self._act(session, session.begin)}

    def generate_gallery(self, session: Session | None) -> object:
        """Replace the waiting tiles with previews. Actions may run in between."""
        try:
            if session is None or not session.generate_gallery():
                return gr.skip()
        except (UserError, MemoryError) as problem:
            return markup.note(_message(problem))
        with session.lock:
            return markup.gallery(session)

    def _act(self, session: Session | None, work: Callable[[], str]) -> dict:
        """Carry out an action, generate, and show what changed; an error becomes its message."""
        if session is None:
            return {self.status: markup.status(ENDED, error=True)}
        with session.lock:
            start, error = time.perf_counter(), False
            try:
                text = work()
                # if this fails, the edit stays and the last image is shown
                if session.is_open and session.ui.picture_version != session.ui.version:
                    session.ui.picture()
                    text += f" Generated in {time.perf_counter() - start:.2f} s."
            except (UserError, MemoryError) as problem:
                text, error = _message(problem), True
                for part in (self.scene, self.photo_scene):  # a refused choice does not stay
                    session.shown.pop(part, None)
            return self._view(session, text, error)

    def _view(self, session: Session, text: str, error: bool) -> dict:
        session.turn += 1
        ui = session.ui
        urls = ("", "")
        if session.is_open:
            urls = self._image_urls(ui, ui.version, ui.picture_version)
        can_undo = session.is_open and ui.can_undo
        view = {
            self.hint: markup.hint(session),
            self.stage: markup.stage(session, urls),
            self.gallery: markup.gallery(session),
            self.classes: markup.classes(session),
            self.undo: gr.Button(interactive=can_undo),
            self.redo: gr.Button(interactive=session.is_open and ui.can_redo),
            # even if the first edits can no longer be undone
            self.reset: gr.Button(interactive=session.is_open and bool(ui.edits)),
            self.radius: gr.Slider(visible=session.tool == "Paint"),
            self.like: gr.Button(visible=session.tool == "Change class"),
            self.style_panel: gr.Column(visible=session.tool == "Select"),
            self.class_panel: gr.Column(visible=session.tool in NEEDS_CLASS),
            self.add_panel: gr.Column(visible=session.tool == "Add"),
        }
        names = session.choices
        scenes = partial(gr.Dropdown, names, value=session.scene, visible=bool(names))
        # what rarely changes: a list being searched, and parts with many images
        for part, content, render in (
            (self.scene, session.scene, scenes),
            (self.photo_scene, session.photo_of, partial(gr.Dropdown, value=session.photo_of)),
            (self.library, session.object, partial(markup.library, session, self.thumbnails)),
            (self.photo, session.photo, partial(markup.photo, session)),
        ):
            if part not in session.shown or session.shown[part] is not content:
                session.shown[part] = content
                view[part] = render()
        if session.file is not None:
            view[self.file], session.file = {**session.file, "turn": session.turn}, None
        if text:
            text = text if error else text[0].upper() + text[1:]
            session.status = markup.status(text, error)
        view[self.status] = session.status
        return view


def _part(call: str = "", content: str = "", **settings: object) -> gr.HTML:
    """A part of the page as HTML. call: what the browser does with it first, by page.js."""
    code = f"{SCRIPT}\n{call}" if call else None
    settings |= {"apply_default_css": False, "elem_classes": "bare"}
    return gr.HTML(content, js_on_load=code, **settings)


def _dropdown(names: list[str], label: str, elem_id: str) -> gr.Dropdown:
    settings = {"interactive": True, "visible": bool(names), "min_width": 280}
    return gr.Dropdown(names, value=None, label=label, elem_id=elem_id, **settings)


def _image_urls(ui: UIModel, version: int, picture_version: int) -> tuple[str, str]:
    """The last image and the label map of a scene as data URLs; the numbers identify its state.

    Until an image has been generated, both are the label map.
    """
    label = markup.data_uri(ui.label_image())
    return label if ui.last_picture is None else markup.data_uri(ui.last_picture), label


def _message(problem: UserError | MemoryError) -> str:
    return str(problem) if isinstance(problem, UserError) else "out of memory"


def serve(page: EditorPage, host: str, port: int) -> None:
    """Serve on host:port until interrupted. Raises UserError if the address is not available."""
    check_address(host, port)
    for name in ("SIGTERM", "SIGHUP"):  # so that the block below exits; SIGHUP: a closed terminal
        number = getattr(signal, name, signal.SIGTERM)  # Windows has no SIGHUP
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="editor_") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # uploads are deleted with it
        os.environ["no_proxy"] = "*"  # the only server that Gradio asks is its own
        app = page.build()
        app.queue(default_concurrency_limit=8, max_size=256, api_open=False)
        _, address, _ = app.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_BYTES,
            state_session_capacity=MAX_SESSIONS,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(  # with the system's fonts: none is downloaded
                primary_hue="blue",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            css_paths=HERE / "page.css",
            app_kwargs={"middleware": [Middleware(Headers)]},
        )
        log(f"the editor is open at {address} (Ctrl+C stops it)")
        try:
            app.block_thread()
        finally:
            app.close(verbose=False)


def check_address(host: str, port: int) -> None:
    """Raise UserError if nothing can listen on host:port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); --port 0 "
            "takes any free port"
        ) from error


class Headers:
    """Middleware that adds the page's content security policy to every response."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _points(event: gr.EventData) -> list[tuple[float, float]]:
    """The points of an event; a browser may send anything."""
    try:
        points = np.array(event._data["points"], float)
    except (KeyError, TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise UserError("the page sent something that is not a list of points")
    return [tuple(point) for point in points.tolist()]


def _drawn(event: gr.EventData) -> tuple[str | None, list[tuple[float, float]]]:
    """What was drawn on the pictures: the scene that they showed, if known, and the points."""
    points = _points(event)
    return event._data.get("scene"), points


def _number(event: gr.EventData) -> int:
    number = event._data.get("number") if isinstance(event._data, dict) else None
    if type(number) is not int or number < 0:
        raise UserError("the page sent something that is not a number")
    return number
