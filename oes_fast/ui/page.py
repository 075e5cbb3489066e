"""The page: what may be filled in, and what is shown of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oes_fast.errors import InputError, OESError
from oes_fast.io.image import SKIMAGE_PREFIX, load_image, skimage_names
from oes_fast.pipelines.presets import PRESETS
from oes_fast.pipelines.stopping import STOPS
from oes_fast.precision import PRECISIONS
from oes_fast.ui import views
from oes_fast.ui.form import MASK_SUFFIXES, MAX_BYTES, MAX_PIXELS, Form, check_image, whole
from oes_fast.ui.packages import package
from oes_fast.ui.pictures import tensor_figure
from oes_fast.ui.runs import PAUSED, RUNNING, WAITING, Run, RunQueue
from oes_fast.ui.worker import picture as picture_of

FAST_SECONDS, SLOW_SECONDS = 0.5, 2.0  # between two looks at a run: for its picture, and for the rest
AS_IT_IS, ADD_NOISE = "It is noisy: restore it as it is", "It is clean: add noise first"
_TASKS = {"Remove noise": "denoise", "More pixels": "superres", "Fill what I paint over": "inpaint"}
_IMAGES = ["image", ".tif", ".tiff", ".jp2", ".avif", ".ppm", ".pgm", ".pfm", ".qoi"]

CSS = """
.oes-figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.oes-figures figure { flex: 1 1 15rem; margin: 0; min-width: 0; }
.oes-figures img { width: 100%; image-rendering: pixelated; }
.oes-figures figcaption, .oes-line { font-variant-numeric: tabular-nums; }
.oes-line[role=alert] { border-left: 0.3rem solid #c62828; padding-left: 0.6rem; }
progress { width: 100%; }
"""

_ADDRESS = "(address) => { if (address) history.replaceState(null, '', address); }"


def build_page(queue: RunQueue, *, uploads: Path, models: tuple[str, ...], threads: int) -> Any:
    """The page as Gradio's blocks.

    Args:
        queue: where its runs go; all pages share it.
        uploads: folder that Gradio puts uploads into: the only files that a page may name.
        models: names of networks to choose from, the usual one first.
        threads: of the CPU, for every run.

    Raises:
        OESError: Gradio is not installed.
    """
    return _Page(queue, uploads, models, threads).blocks


class _Page:
    """Builds the page; it keeps nothing of those who look at it."""

    def __init__(self, queue: RunQueue, uploads: Path, models: tuple[str, ...], threads: int) -> None:
        self._gr: Any = package("gradio")
        self._uploads = uploads.resolve()
        self._queue, self._models, self._threads = queue, models, threads
        gr = self._gr
        with gr.Blocks(analytics_enabled=False, title="oes-fast", delete_cache=(600, 3600)) as self.blocks:
            gr.Markdown(
                "# Optimal Eye Surgeon\nRestores an image with a sparse network that has seen no other. "
                "Watch it come out of the noise, keep the frames you like, stop when it is best."
            )
            self._current = gr.State(None)
            self._seen, self._seen_closely = gr.State(None), gr.State(None)
            self._address = gr.Textbox(visible="hidden", elem_id="oes-address")
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self._build_form()
                with gr.Column(scale=2, min_width=320):
                    self._build_run()
            self._fast, self._slow = gr.Timer(FAST_SECONDS), gr.Timer(SLOW_SECONDS)
            self._connect()

    def _build_form(self) -> None:
        gr = self._gr
        self._upload = gr.File(
            label=f"Drop an image here (at most {MAX_BYTES >> 20} MiB and {MAX_PIXELS / 1e6:g} megapixels)",
            file_types=_IMAGES,
            file_count="single",
            elem_id="oes-upload",
            height=140,
        )
        self._preview = gr.HTML()
        self._picture = gr.Dropdown(
            skimage_names(), value="camera", label="or take a picture of scikit-image", elem_id="oes-picture"
        )
        self._task = gr.Radio(list(_TASKS), value=next(iter(_TASKS)), label="What to do", elem_id="oes-task")
        self._factor = gr.Number(
            2, label="Times as many rows and columns", precision=0, visible=False, elem_id="oes-factor"
        )
        self._painting = gr.ImageEditor(
            label="Paint over what is missing",
            type="numpy",
            image_mode="RGBA",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=12, colors=["#d81b60"], color_mode="fixed"),
            visible=False,
            elem_id="oes-painting",
        )
        noise = gr.Radio([AS_IT_IS, ADD_NOISE], value=ADD_NOISE, label="The image")
        sigma = gr.Slider(0.01, 0.5, value=0.1, step=0.01, label="Standard deviation of the noise, of 1")
        size = gr.Number(
            256, label="Crop to a square of so many pixels a side (0: as it is)", elem_id="oes-size"
        )
        preset = gr.Radio(
            sorted(PRESETS, key=lambda name: name != "quick"),
            value="quick",
            label="Preset",
            info="quick: minutes on a CPU; paper: the published settings",
        )
        self._start = gr.Button("Start", variant="primary", elem_id="oes-start")
        self._message = gr.HTML(elem_id="oes-message")
        with gr.Accordion("More", open=False):
            density = gr.Number(
                0, label="Density: share of the weights to keep (0: the preset's)", elem_id="oes-density"
            )
            mask = gr.File(
                label="Mask file, in the place of the search", file_types=[*MASK_SUFFIXES], height=110
            )
            seed = gr.Number(0, label="Seed", precision=0)
            runs = gr.Number(1, label="Trainings to take the mean of", precision=0)
            precision = gr.Radio(list(PRECISIONS), value="float32", label="Precision of products")
            search_steps = gr.Number(
                0, label="Steps of the search (0: the preset's)", elem_id="oes-search-steps"
            )
            train_steps = gr.Number(
                0, label="Steps of the training (0: the preset's)", elem_id="oes-train-steps"
            )
            stop = gr.Radio(list(STOPS), value="none", label="Rule that ends the training")
            model = gr.Dropdown(list(self._models), value=self._models[0], label="Network")
            model_options = gr.Textbox(
                "",
                label="Options of the network",
                info="KEY=VALUE, separated by spaces, such as num_channels_down=16,32,64",
                elem_id="oes-model-options",
            )
        self._form = (
            *(self._task, self._factor, self._painting),
            *(self._upload, self._picture, noise, sigma, size, preset, density, mask, seed, runs),
            *(precision, search_steps, train_steps, stop, model, model_options),
        )

    def _build_run(self) -> None:
        gr = self._gr
        self._which = gr.Dropdown(
            [], label="Run", info="All runs of this server; they wait for each other.", elem_id="oes-which"
        )
        self._status = gr.HTML(elem_id="oes-status")
        with gr.Row():
            self._pause = gr.Button("Pause", elem_id="oes-pause", min_width=90)
            self._go = gr.Button("Go on", elem_id="oes-go", min_width=90)
            self._keep = gr.Button("Keep this frame", elem_id="oes-keep", min_width=140)
            self._stop = gr.Button("Stop", variant="stop", elem_id="oes-stop", min_width=90)
        self._pictures = gr.HTML(elem_id="oes-pictures")
        self._compared = gr.ImageSlider(
            label="Before and after (zoom with the wheel, or open it in full)",
            height=420,
            elem_id="oes-compared",
        )
        self._kept = gr.Slider(
            1, 2, value=1, step=1, label="Kept frames", visible=False, interactive=True, elem_id="oes-kept"
        )
        self._kept_shown = gr.HTML(elem_id="oes-kept-shown")
        with gr.Row():
            self._loss = gr.LinePlot(
                x="step",
                y="loss",
                color="phase",
                title="Loss",
                height=240,
                min_width=280,
            )
            self._psnr = gr.LinePlot(
                x="step",
                y="PSNR",
                color="of",
                title="PSNR in dB, of the training",
                height=240,
                min_width=280,
            )
        self._layers = gr.BarPlot(
            x="layer",
            y="kept",
            title="Weights of each layer that are kept, %",
            height=300,
            x_label_angle=-60,
        )
        self._files = gr.File(label="Results", interactive=False, visible=False, elem_id="oes-files")
        self._command = gr.Textbox(
            label="The command line that repeats this run, beside the image",
            interactive=False,
            lines=2,
            visible=False,
            buttons=["copy"],
            elem_id="oes-command",
        )

    def _connect(self) -> None:
        buttons = [self._pause, self._go, self._keep, self._stop]
        fast = [self._seen, self._status, self._pictures, *buttons]
        slow = [
            self._seen_closely,
            *(self._which, self._compared, self._loss, self._psnr, self._layers, self._files),
            *(self._command, self._kept),
        ]
        options = {"show_progress": "hidden", "api_visibility": "private", "queue": False}

        def look_again(event: Any) -> None:
            event.then(self._look, [self._current, self._seen], fast, **options).then(
                self._look_closely, [self._current, self._seen_closely], slow, **options
            )

        self._upload.change(self._uploaded, self._upload, [self._preview, self._message], **options)
        for event in (self._task.change, self._upload.change, self._picture.change):
            event(
                self._asked,
                [self._task, self._upload, self._picture],
                [self._factor, self._painting],
                **options,
            )
        started = self._start.click(
            self._started,
            list(self._form),
            [self._message, self._current, self._seen, self._address],
            **options,
        )
        look_again(started)
        chosen = self._which.input(
            self._chosen, self._which, [self._current, self._seen, self._address, self._kept_shown], **options
        )
        look_again(chosen)
        self._address.change(None, self._address, None, js=_ADDRESS)
        acts: dict[Any, Callable[[Run], object]] = {
            self._pause: self._queue.pause,
            self._go: self._queue.go_on,
            self._stop: self._queue.stop,
            self._keep: self._queue.keep,
        }
        for button, act in acts.items():
            look_again(button.click(self._acted(act), self._current, self._message, **options))
        self._kept.input(
            self._kept_chosen, [self._current, self._kept], [self._kept_shown, self._compared], **options
        )
        self._fast.tick(self._look, [self._current, self._seen], fast, **options)
        self._slow.tick(self._look_closely, [self._current, self._seen_closely], slow, **options)

        def loaded(request: Any) -> tuple[Any, ...]:
            return self._loaded(request.query_params.get("run"))

        loaded.__annotations__["request"] = self._gr.Request  # Gradio hands it over where it sees its type
        look_again(self.blocks.load(loaded, None, [self._current, self._seen, self._address], **options))

    def _uploaded(self, path: str | None) -> tuple[str, str]:
        """(preview, what is wrong with it) of a file."""
        try:
            file = self._file(path)
            if file is None:
                return "", ""
            image = check_image(file)
        except OESError as error:
            return "", views.line(str(error), alert=True)
        height, width = image.pixels.shape[-2:]
        shown = tensor_figure(image.pixels, f"{image.name}: {width} x {height} pixels, {image.bits} bits")
        return f'<div class="oes-figures">{shown}</div>', ""

    def _file(self, path: str | None) -> Path | None:
        """A file that was uploaded, None for none.

        Raises:
            InputError: it is another one.
        """
        if path is None:
            return None
        file = Path(path).resolve()
        if not file.is_relative_to(self._uploads) or not file.is_file():
            raise InputError(f"{file.name}: expected a file that was uploaded")
        return file

    def _asked(self, task: str, upload: str | None, picture: str | None) -> tuple[Any, ...]:
        """(factor, painting) as the task needs them."""
        gr = self._gr
        name = _TASKS[task]
        if name != "inpaint":
            return gr.Number(visible=name == "superres"), gr.ImageEditor(None, visible=False)
        try:
            file = self._file(upload)
            image = load_image(f"{SKIMAGE_PREFIX}{picture}") if file is None else check_image(file)
        except OESError:  # which is said where the file is
            return gr.Number(visible=False), gr.ImageEditor(None, visible=False)
        background = picture_of(image.pixels)
        if background.ndim == 2:
            background = np.stack([background] * 3, axis=-1)
        value = {"background": background, "layers": [], "composite": None}
        return gr.Number(visible=False), gr.ImageEditor(value, visible=True)

    def _started(
        self,
        task: str,
        factor: float | None,
        painting: dict[str, Any] | None,
        upload: str | None,
        picture: str | None,
        noise: str,
        sigma: float,
        size: float | None,
        preset: str,
        density: float | None,
        mask: str | None,
        seed: float | None,
        runs: float | None,
        precision: str,
        search_steps: float | None,
        train_steps: float | None,
        stop: str,
        model: str,
        model_options: str,
    ) -> tuple[Any, ...]:
        """(what is wrong, run, nothing seen of it, address) of a run that is to begin."""
        try:
            form = Form(
                task=_TASKS[task],
                factor=whole("factor", factor) or 0,
                painted=_painted(painting),
                upload=self._file(upload),
                picture=picture,
                sigma=sigma if noise == ADD_NOISE else None,
                size=whole("size", size) or None,
                preset=preset,
                density=density or None,
                mask=self._file(mask),
                precision=precision,
                seed=whole("seed", seed) or 0,
                runs=whole("trainings", runs) or 1,
                search_steps=whole("steps of the search", search_steps) or None,
                train_steps=whole("steps of the training", train_steps) or None,
                stop=stop,
                model=None if model == self._models[0] else model,
                model_options=model_options,
                threads=self._threads,
            )
            run = self._queue.submit(form.prepare)
        except (OESError, OSError) as error:
            skip = self._gr.skip()
            return views.line(str(error), alert=True), skip, skip, skip
        return "", run.number, None, f"?run={run.number}"

    def _chosen(self, label: str | None) -> tuple[Any, ...]:
        number = _number(label)
        return number, None, "" if number is None else f"?run={number}", ""

    def _loaded(self, named: str | None) -> tuple[Any, ...]:
        """The run that the page's address names, else the one under way, else the newest."""
        run = self._queue.find(_number(named))
        if run is None:
            runs = self._queue.runs()
            run = next((each for each in reversed(runs) if not each.over), runs[0] if runs else None)
        if run is None:
            return None, None, ""
        return run.number, None, f"?run={run.number}"

    def _acted(self, act: Callable[[Run], object]) -> Callable[[int | None], str]:
        def acted(number: int | None) -> str:
            run = self._queue.find(number)
            if run is None:
                return views.line("There is no run yet: start one.")
            try:
                act(run)
            except OESError as error:
                return views.line(str(error), alert=True)
            return ""

        return acted

    def _look(self, number: int | None, seen: Any) -> tuple[Any, ...]:
        """What changes all the time; nothing where nothing has changed."""
        gr = self._gr
        run = self._queue.find(number)
        ahead = 0 if run is None or run.state != WAITING else self._queue.ahead(run)
        now = None if run is None else [run.number, run.changed, ahead]
        if now == seen:
            return tuple(gr.skip() for _ in range(7))
        if run is None:
            return (now, "", "", *(gr.Button(interactive=False) for _ in range(4)))
        begun = run.frame is not None
        usable = (run.state == RUNNING and begun, run.state == PAUSED, begun, not run.over)
        return (
            now,
            views.status(run, self._queue),
            views.pictures(run.frame, run.first),
            *(gr.Button(interactive=each) for each in usable),
        )

    def _look_closely(self, number: int | None, seen: Any) -> tuple[Any, ...]:
        """The rest: runs, comparison, curves, layers, results; nothing where nothing has changed."""
        gr = self._gr
        run = self._queue.find(number)
        runs = {each.number: _label(each) for each in self._queue.runs()}
        pair = None if run is None else views.compared(run)
        now = [list(runs.values()), run and [run.number, run.changed], run and [number, run.compared_count]]
        if now == seen:
            return tuple(gr.skip() for _ in range(9))
        which = gr.Dropdown(list(runs.values()), value=None if run is None else runs.get(run.number))
        if run is None:
            return (now, which, *(gr.skip() for _ in range(7)))
        points, psnr = list(run.points), views.psnr_rows(list(run.points))
        frame: Any = package("pandas").DataFrame
        files = [str(path) for path in [*(run.files if run.over else []), *views.kept_files(run)]]
        kept = len(run.kept)
        return (
            now,
            which,
            gr.skip() if seen is not None and seen[2] == now[2] else pair,
            frame(views.loss_rows(points)) if points else None,
            frame(psnr) if psnr["step"] else None,
            frame(views.layer_rows(run)) if run.layers else None,
            gr.File(files or None, visible=bool(files)),
            gr.Textbox(views.command(run), visible=True),
            gr.Slider(maximum=max(kept, 2), visible=kept > 0),
        )

    def _kept_chosen(self, number: int | None, chosen: float) -> tuple[Any, ...]:
        run = self._queue.find(number)
        if run is None or not run.kept:
            return "", self._gr.skip()
        frame = run.kept[min(max(int(chosen), 1), len(run.kept)) - 1]
        return views.pictures(frame, None), views.kept_compared(run, frame)


def _label(run: Run) -> str:
    return f"Run {run.number}: {Path(run.output).stem.removesuffix('_restored')}, {run.state}"


def _painted(painting: dict[str, Any] | None) -> Any:
    """Which pixels an editor's layers cover, bool [H, W]; None without a layer."""
    layers = [] if painting is None else painting["layers"]
    covered = [layer[..., 3] > 0 for layer in layers if layer is not None and layer.ndim == 3]
    return np.logical_or.reduce(covered) if covered else None


def _number(text: str | None) -> int | None:
    """The run that an address or a label names, None where it names none."""
    words = (text or "").removeprefix("Run ").partition(":")[0]
    return int(words) if words.isdecimal() and words.isascii() and len(words) < 10 else None
