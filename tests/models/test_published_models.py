"""Weights of the published code load: names, order and shapes as its modules have them, written by hand."""

from __future__ import annotations

import torch
from torch import nn

import oes_fast as oes


def conv(name, inputs, outputs, kernel, *, bias=True):
    """Entries of a convolution."""
    found = [(f"{name}.weight", (outputs, inputs, kernel, kernel))]
    return [*found, (f"{name}.bias", (outputs,))] if bias else found


def transposed(name, inputs, outputs, kernel, *, bias=True):
    return [
        (f"{name}.weight", (inputs, outputs, kernel, kernel)),
        *([(f"{name}.bias", (outputs,))] if bias else []),
    ]


def norm(name, channels):
    """Entries of a batch norm."""
    of_all = [(f"{name}.{key}", (channels,)) for key in ("weight", "bias", "running_mean", "running_var")]
    return [*of_all, (f"{name}.num_batches_tracked", ())]


def loads(net, entries):
    """Weights under those names load in that order, and are then the network's."""
    assert [(name, tuple(t.shape)) for name, t in net.state_dict().items()] == entries
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in entries:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
        else:
            state[name] = torch.rand(shape, generator=generator)
    net.load_state_dict(state)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert [n for n, _ in net.named_parameters()] == [
        name for name, _ in entries if not name.endswith(("mean", "var", "tracked"))
    ]


def skip_entries(prefix, down, up, across, inputs, *, lanczos=None):
    """Of one scale and those below: pad and convolution are 0 and 1, the Lanczos filter 2."""
    (channels, *more_down), (wide, *more_up), (side, *more_across) = down, up, across
    inner = f"{prefix}1." if side == 0 else f"{prefix}1.1."
    found = []
    if side:
        found += conv(f"{prefix}1.0.1.1", inputs, side, 1) + norm(f"{prefix}1.0.2", side)
    found += conv(f"{inner}1.1", inputs, channels, 3)
    if lanczos:
        found += conv(f"{inner}1.2.downsampler_", channels, channels, lanczos)
    found += norm(f"{inner}2", channels) + conv(f"{inner}4.1", channels, channels, 3)
    found += norm(f"{inner}5", channels)
    below = channels
    if more_down:
        found += skip_entries(f"{inner}7.", more_down, more_up, more_across, channels, lanczos=lanczos)
        below = more_up[0]
    found += norm(f"{prefix}2", side + below) + conv(f"{prefix}3.1", side + below, wide, 3)
    found += norm(f"{prefix}4", wide)
    return found + conv(f"{prefix}6.1", wide, wide, 1) + norm(f"{prefix}7", wide)


def test_skip():
    net = oes.models.skip(
        5,
        3,
        num_channels_down=(6, 8),
        num_channels_up=(7, 9),
        num_channels_skip=(4, 0),
        filter_size_down=3,
        downsample_mode="lanczos2",
        need1x1_up=True,
        act_fun=nn.ReLU,
    )
    entries = skip_entries("", (6, 8), (7, 9), (4, 0), 5, lanczos=8)
    loads(net, [*entries, *conv("9.1", 7, 3, 1)])


def unet_convs(name, inputs, outputs, *, with_norm):
    found = []
    for number, channels in (("conv1", inputs), ("conv2", outputs)):
        found += conv(f"{name}.{number}.0.0", channels, outputs, 3)
        found += norm(f"{name}.{number}.1", outputs) if with_norm else []
    return found


def test_unet():
    widths = [4, 8, 16, 32, 64]
    net = oes.models.unet(
        3, 2, feature_scale=16, more_layers=1, concat_x=True, norm_layer="BatchNorm2d", upsample_mode="deconv"
    )
    entries = unet_convs("start", 3, widths[0] - 3, with_norm=True)
    for i in range(1, 5):
        entries += unet_convs(f"down{i}.conv", widths[i - 1], widths[i] - 3, with_norm=True)
    entries += unet_convs("more_downs.0.conv", 64, 61, with_norm=True)
    entries += transposed("more_ups.0.up", 64, 64, 4)
    entries += unet_convs("more_ups.0.conv", 128, 64, with_norm=False)
    for i in range(4, 0, -1):
        entries += transposed(f"up{i}.up", 2 * widths[i - 1], widths[i - 1], 4)
        entries += unet_convs(f"up{i}.conv", 2 * widths[i - 1], widths[i - 1], with_norm=False)
    loads(net, [*entries, *conv("final.0.0", 4, 2, 1)])


def test_unet_with_up_sampling_and_instance_norm_has_other_names():
    net = oes.models.unet(
        3, 2, feature_scale=16, upsample_mode="nearest", pad="reflection", need_sigmoid=False
    )
    names = list(net.state_dict())
    assert names[:4] == ["start.conv1.0.1.weight", "start.conv1.0.1.bias", "start.conv2.0.1.weight", names[3]]
    assert "up4.up.1.1.weight" in names
    assert names[-2:] == ["final.1.weight", "final.1.bias"]


def test_resnet():
    net = oes.models.resnet(3, 2, num_blocks=2, num_channels=4)
    entries = conv("model.0.1", 3, 4, 3)
    for block in ("model.2", "model.3"):
        entries += conv(f"{block}.0", 4, 4, 3, bias=False) + norm(f"{block}.1", 4)
        entries += conv(f"{block}.3", 4, 4, 3, bias=False) + norm(f"{block}.4", 4)
    entries += conv("model.4", 4, 4, 3) + norm("model.5", 4) + conv("model.6.1", 4, 2, 3)
    loads(net, entries)


def test_dcgan():
    net = oes.models.dcgan(3, 2, ndf=4, num_ups=5, size=(9, 9))
    entries = transposed("0", 3, 4, 3, bias=False) + norm("1", 4)
    for i in (3, 6):
        entries += transposed(str(i), 4, 4, 4, bias=False) + norm(str(i + 1), 4)
    loads(net, [*entries, *transposed("9", 4, 2, 4, bias=False)])
    net = oes.models.dcgan(3, 2, ndf=4, num_ups=4, need_convT=False)
    entries = transposed("0", 3, 4, 3, bias=False) + norm("1", 4)
    entries += conv("4", 4, 4, 3, bias=False) + norm("5", 4)
    loads(net, [*entries, *conv("8", 4, 2, 3, bias=False)])


def test_conv_decoder():
    net = oes.models.conv_decoder(4, 2, size=(9, 9), in_size=3, num_layers=4, skips=True, need_bias=True)
    entries = []
    for i in (2, 6, 10):
        entries += conv(f"net1.{i}", 4, 4, 3) + norm(f"net1.{i + 2}", 4)
    entries += conv("net2.1", 12, 4, 3) + norm("net2.3", 4) + conv("net2.4", 4, 2, 1)
    loads(net, entries)


def test_conv_decoder_grows_by_one_factor():
    net = oes.models.conv_decoder(4, 2, size=(256, 100), in_size=(16, 8), num_layers=6)
    sizes = [m.size for m in net.net1 if isinstance(m, nn.Upsample)]
    assert sizes == [(28, 14), (49, 22), (85, 37), (148, 61), (256, 100)]
    net = oes.models.conv_decoder(4, 2, size=(256, 100), in_size=(16, 8), num_layers=4, nonlin_scales=True)
    assert [m.size for m in net.net1 if isinstance(m, nn.Upsample)] == [(41, 19), (149, 60), (256, 100)]


def test_lanczos_halves_as_its_filter_says():
    net = oes.models.skip(
        2,
        1,
        num_channels_down=(3,),
        filter_size_down=3,
        downsample_mode="lanczos2",
        dtype=torch.float64,
        seed=0,
    )
    filter_ = next(m for m in net.modules() if type(m).__name__ == "Downsampler")
    weight = filter_.downsampler_.weight.detach()
    # The windowed sinc at distances 0.25, 0.75, 1.25, 1.75 of halved pixels, by hand.
    taps = torch.tensor([0.25, 0.75, 1.25, 1.75], dtype=torch.float64)
    half = torch.sinc(taps) * torch.sinc(taps / 2)
    taps = torch.cat([half.flip(0), half])
    expected = taps[:, None] * taps
    torch.testing.assert_close(weight[1, 1], expected / expected.sum(), rtol=0, atol=1e-14)
    assert not weight[0, 1].any()
    ramp = torch.arange(12, dtype=torch.float64).expand(1, 3, 12, 12)
    halved = filter_(ramp)
    assert halved.shape == (1, 3, 6, 6)
    torch.testing.assert_close(halved[0, 0, 2, 2:4], torch.tensor([4.5, 6.5], dtype=torch.float64))
    assert filter_.downsampler_.weight.requires_grad  # as it is published
