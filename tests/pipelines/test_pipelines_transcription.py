"""Search and training against the transcription of the published formulas, step by step in float64."""

from __future__ import annotations

import pytest
import torch
import transcription
from conftest import assert_close, skip_unless_available
from kernel_backends import EMULATED

import oes_fast as oes

STEPS = 32
OPTIONS = [
    {},
    {"num_channels_down": (4, 6, 8), "filter_size_down": 3},
    {"num_channels_skip": 2, "pad": "zero", "downsample_mode": "stride", "act_fun": "ELU"},
]


pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]


# Weights before a batch norm have no gradient but rounding, about 1e-17: Adam divides it by that of the KL.
@pytest.mark.parametrize(
    ("backend", "options", "kl", "rtol"),
    [
        ("reference", OPTIONS[0], 1e-9, 1e-7),
        *(("reference", options, 1e-4, 1e-11) for options in OPTIONS),
        ("torch", OPTIONS[1], 1e-4, 1e-10),
        ("cpu", OPTIONS[2], 1e-4, 1e-10),
        *((name, {**OPTIONS[0], "size": (16, 16)}, 1e-4, 1e-10) for name in EMULATED),  # slow
    ],
)
def test_search(make_problem, backend, options, kl, rtol):
    skip_unless_available(backend)
    net, _, z, noisy, clean = make_problem(**options)
    steps = STEPS // 4 if backend in EMULATED else STEPS
    settings = {"density": 0.1, "steps": steps, "lr": 1e-2, "kl": kl, "seed": 3}
    logits = []
    found = oes.search_mask(
        net, z, noisy, clean=clean, record_every=1, backend=backend,
        callback=lambda info: logits.append(info._run.logits.clone()), **settings,
    )  # fmt: skip
    expected = list(transcription.search(net, z, noisy, **settings))

    assert found.history.step == list(range(steps + 1))
    for step, (objective, s) in enumerate(expected):
        assert found.history[step].loss == pytest.approx(float(objective), rel=1e-12)
        assert_close(logits[step], s, rtol)
    assert_close(found.logits, expected[-1][1], rtol)
    assert found.logits.abs().max() > 0.5 * steps * 1e-2  # it went somewhere
    assert torch.equal(found.mask.flat, transcription.top(expected[-1][1], 0.1))


def test_search_output_is_the_initial_network_under_the_mask(problem):
    net, _, z, noisy, _ = problem
    found = oes.search_mask(net, z, noisy, density=0.3, steps=5, backend="reference")
    _, output, _ = next(transcription.train(net, found.mask.flat, z, noisy, steps=0, lr=1e-2))
    assert_close(found.output, output)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("options", OPTIONS)
def test_training(make_problem, options, backend):
    skip_unless_available(backend)
    net, mask, z, noisy, clean = make_problem(**options)
    outputs, weights = [], []

    def watch(info):
        outputs.append(info.output.clone())
        weights.append(info._run.weights.detach().clone())

    fit = oes.train_sparse(
        net, mask, z, noisy, clean=clean, steps=STEPS, record_every=1, backend=backend, callback=watch
    )
    expected = list(transcription.train(net, mask.flat, z, noisy, steps=STEPS, lr=1e-2))

    for step, (loss, output, before) in enumerate(expected):
        assert fit.history[step].loss == pytest.approx(float(loss), rel=1e-12)
        w = torch.cat([p.detach().reshape(-1) for p in before.parameters()])
        if backend == "reference":
            assert_close(outputs[step], output)
            assert_close(weights[step], w)
        else:  # a bias before a batch norm has no gradient but rounding, which the rewritten network lacks
            assert_close(outputs[step], output, 1e-10)
            assert_close(weights[step], w[mask.flat], 1e-7)
    psnr = -10 * torch.log10(((expected[-1][1] - clean) ** 2).mean())
    assert fit.history[-1].psnr == pytest.approx(float(psnr), rel=1e-12)
    assert expected[-1][0] < 0.9 * expected[0][0]

    trained = expected[-1][2].state_dict()
    assert fit.net.state_dict().keys() == trained.keys()
    if backend != "reference":
        return  # which leaves the statistics of dead channels alone
    for name, tensor in fit.net.state_dict().items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, trained[name]), name
        else:
            assert_close(tensor, trained[name])
