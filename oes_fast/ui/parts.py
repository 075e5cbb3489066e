"""The parts of the page, in the order that they stand in."""

from __future__ import annotations

from typing import Any

from oes_fast.io.image import skimage_names
from oes_fast.pipelines.presets import PRESETS
from oes_fast.pipelines.stopping import STOPS
from oes_fast.precision import PRECISIONS
from oes_fast.ui.form import MASK_SUFFIXES, MAX_BYTES, MAX_PIXELS

AS_IT_IS, ADD_NOISE = "It is noisy: restore it as it is", "It is clean: add noise first"
TASKS = {"Remove noise": "denoise", "More pixels": "superres", "Fill what I paint over": "inpaint"}
MASKS = {
    "Search one on this image": "search",
    "Take the layer profile of a published one": "profile",
    "Load a file": "file",
}
_IMAGES = ["image", ".tif", ".tiff", ".jp2", ".avif", ".ppm", ".pgm", ".pfm", ".qoi"]

CSS = """
.oes-figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.oes-figures figure { flex: 1 1 15rem; margin: 0; min-width: 0; }
.oes-figures img { width: 100%; image-rendering: pixelated; }
.oes-figures figcaption, .oes-line { font-variant-numeric: tabular-nums; }
.oes-line[role=alert] { border-left: 0.3rem solid #c62828; padding-left: 0.6rem; }
.oes-unseen { position: absolute !important; width: 1px; height: 1px; overflow: hidden !important;
  clip-path: inset(50%); white-space: nowrap; }
progress { width: 100%; }
"""


class Parts:
    """Builds the parts, and knows them.

    Args:
        gr: Gradio.
        models: names of networks to choose from, the usual one first.
    """

    def __init__(self, gr: Any, models: tuple[str, ...]) -> None:
        self._gr, self._models = gr, models

    def build_form(self) -> None:
        """What may be filled in."""
        gr = self._gr
        self._upload = gr.File(
            label=f"Image (to {MAX_BYTES >> 20} MiB, {MAX_PIXELS / 1e6:g} megapixels)",
            file_types=_IMAGES,
            file_count="single",
            elem_id="oes-upload",
            height=150,
        )
        self._preview = gr.HTML()
        self._picture = gr.Dropdown(
            skimage_names(), value="camera", label="or take a picture of scikit-image", elem_id="oes-picture"
        )
        self._task = gr.Radio(list(TASKS), value=next(iter(TASKS)), label="What to do", elem_id="oes-task")
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
        self._noise = gr.Radio([AS_IT_IS, ADD_NOISE], value=ADD_NOISE, label="The image")
        sigma = gr.Slider(0.01, 0.5, value=0.1, step=0.01, label="Standard deviation of the noise, of 1")
        self._size = gr.Number(
            256, label="Crop to a square of so many pixels a side (0: as it is)", elem_id="oes-size"
        )
        preset = gr.Radio(
            sorted(PRESETS, key=lambda name: name != "fast"),
            value="fast",
            label="Preset",
            info="fast: minutes on a CPU; quick: half of its time; paper: the published settings, hours",
        )
        self._start = gr.Button("Start", variant="primary", elem_id="oes-start")
        self._message = gr.HTML(elem_id="oes-message")
        with gr.Accordion("More", open=False):
            self._mask_from = gr.Radio(
                list(MASKS),
                value=next(iter(MASKS)),
                label="Mask: which weights to keep",
                info="A layer profile saves the search: weights are drawn at random, as many in each layer "
                "as a published mask keeps there. It is of a density of 0.05.",
                elem_id="oes-mask-from",
            )
            self._mask = gr.File(
                label="Mask file", file_types=[*MASK_SUFFIXES], height=110, visible=False, elem_id="oes-mask"
            )
            density = gr.Number(
                0, label="Density: share of the weights to keep (0: the preset's)", elem_id="oes-density"
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
            *(self._upload, self._picture, self._noise, sigma, self._size, preset),
            *(self._mask_from, self._mask, density, seed, runs, precision),
            *(search_steps, train_steps, stop, model, model_options),
        )

    def build_run(self) -> None:
        """What is shown of a run."""
        gr = self._gr
        self._which = gr.Dropdown(
            [], label="Run", info="All runs of this server; they wait for each other.", elem_id="oes-which"
        )
        self._status = gr.HTML(elem_id="oes-status")
        self._spoken = gr.HTML(elem_id="oes-spoken", elem_classes="oes-unseen")
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
