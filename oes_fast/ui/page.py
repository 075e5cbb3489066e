"""The page: what may be filled in, and what is shown of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oes_fast.errors import InputError, OESError
from oes_fast.io.image import SKIMAGE_PREFIX, load_image
from oes_fast.ui import views
from oes_fast.ui.form import Form, check_image, whole
from oes_fast.ui.packages import package
from oes_fast.ui.parts import ADD_NOISE, AS_IT_IS, MASKS, TASKS, Parts
from oes_fast.ui.pictures import tensor_figure
from oes_fast.ui.run import CUT_OFF, PAUSED, RUNNING, WAITING, Run
from oes_fast.ui.runs import RunQueue
from oes_fast.ui.worker import picture as picture_of

FAST_SECONDS, SLOW_SECONDS = 0.5, 2.0  # between two looks at a run: for its picture, and for the rest
SPOKEN_SECONDS = 20.0  # between two reports of a screen reader, unless something has happened
# A screen reader tells of changes inside an element that is there before them: Gradio's box, not its text.
_LIVE = """() => {
  const box = document.getElementById("oes-spoken");
  for (const [name, value] of [["role", "status"], ["aria-live", "polite"], ["aria-atomic", "true"]])
    box.setAttribute(name, value);
}"""
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


class _Page(Parts):
    """Builds the page; it keeps nothing of those who look at it."""

    def __init__(self, queue: RunQueue, uploads: Path, models: tuple[str, ...], threads: int) -> None:
        gr: Any = package("gradio")
        super().__init__(gr, models)
        self._uploads = uploads.resolve()
        self._queue, self._threads = queue, threads
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
                    self.build_form()
                with gr.Column(scale=2, min_width=320):
                    self.build_run()
            self._fast, self._slow = gr.Timer(FAST_SECONDS), gr.Timer(SLOW_SECONDS)
            self._connect()

    def _connect(self) -> None:
        buttons = [self._pause, self._go, self._keep, self._stop]
        fast = [self._seen, self._status, self._pictures, *buttons]
        slow = [
            self._seen_closely,
            *(self._which, self._compared, self._loss, self._psnr, self._layers, self._files),
            *(self._command, self._kept, self._spoken),
        ]
        options = {"show_progress": "hidden", "api_visibility": "private", "queue": False}

        def look_again(event: Any) -> None:
            event.then(self._look, [self._current, self._seen], fast, **options).then(
                self._look_closely, [self._current, self._seen_closely], slow, **options
            )

        uploaded = [self._preview, self._message, self._noise, self._size]
        self._upload.change(self._uploaded, self._upload, uploaded, **options)
        for event in (self._task.change, self._upload.change, self._picture.change):
            event(
                self._asked,
                [self._task, self._upload, self._picture],
                [self._factor, self._painting],
                **options,
            )
        self._mask_from.change(
            lambda chosen: self._gr.File(visible=MASKS[chosen] == "file"),
            self._mask_from,
            self._mask,
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
        self.blocks.load(None, None, None, js=_LIVE)
        look_again(self.blocks.load(loaded, None, [self._current, self._seen, self._address], **options))

    def _uploaded(self, path: str | None) -> tuple[Any, ...]:
        """(preview, what is wrong, noise, size) of a file, which is restored as it is by default."""
        skip = self._gr.skip()
        try:
            file = self._file(path)
            if file is None:
                return "", "", skip, skip
            image = check_image(file)
        except OESError as error:
            return "", views.line(str(error), alert=True), skip, skip
        height, width = image.pixels.shape[-2:]
        shown = tensor_figure(image.pixels, f"{image.name}: {width} x {height} pixels, {image.bits} bits")
        return f'<div class="oes-figures">{shown}</div>', "", AS_IT_IS, 0

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
        name = TASKS[task]
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
        mask_from: str,
        mask: str | None,
        density: float | None,
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
                task=TASKS[task],
                factor=whole("factor", factor) or 0,
                painted=_painted(painting),
                upload=self._file(upload),
                picture=picture,
                sigma=sigma if noise == ADD_NOISE else None,
                size=whole("size", size) or None,
                preset=preset,
                density=density or None,
                mask_from=MASKS[mask_from],
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
                return views.line("There is no run yet: start one.", alert=True)
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
        usable = (
            run.state == RUNNING and begun,
            run.state in (PAUSED, CUT_OFF),
            begun,
            not run.over or run.state == CUT_OFF,
        )
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
        told = self._told(run, None if seen is None else seen[3])
        now = [
            list(runs.values()),
            run and [run.number, run.changed],
            run and [number, run.compared_count],
            told,
        ]
        if now == seen:
            return tuple(gr.skip() for _ in range(10))
        which = gr.Dropdown(list(runs.values()), value=None if run is None else runs.get(run.number))
        if run is None:
            return (now, which, *(gr.skip() for _ in range(8)))
        points, psnr = list(run.points), views.psnr_rows(list(run.points))
        frame: Any = package("pandas").DataFrame
        files = [str(path) for path in [*(views.results(run) if run.over else []), *views.kept_files(run)]]
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
            gr.skip() if seen is not None and seen[3] == told else views.line(views.spoken(run, self._queue)),
        )

    def _told(self, run: Run | None, before: Any) -> Any:
        """What a screen reader is to have said of the run, and when: as before, or something new."""
        if run is None:
            return None
        phase = None if run.frame is None else run.frame.phase
        key = [run.number, run.state, phase, self._queue.ahead(run) if run.state == WAITING else 0]
        now = time.monotonic()
        if before is None or before[0] != key or (run.state == RUNNING and now - before[1] > SPOKEN_SECONDS):
            return [key, now]
        return before

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
