"""The kept weights by name in optimisers of torch, against the dense network pruned by the same mask."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from conftest import assert_close, build_problem
from safetensors.torch import load_file, save_file
from torch import nn

import oes_fast as oes

DECAYED = "1.1.1.weight"


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 16), density=0.6)


def step(module, problem, optimizer, weights, *, set_to_none=True):
    optimizer.zero_grad(set_to_none=set_to_none)
    loss = (module(problem.z) - problem.noisy).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def grouped(named):
    """Convolutions decay, batch norms have another learning rate, the rest is as the optimiser has it."""
    weights = [w for name, w in named.items() if name.endswith("1.weight")]
    norms = [w for name, w in named.items() if ".2." in name]
    rest = [w for name, w in named.items() if not any(w is other for other in weights + norms)]
    assert weights
    assert norms
    assert rest
    return [{"params": weights, "weight_decay": 0.1}, {"params": norms, "lr": 3e-3}, {"params": rest}]


OPTIMIZERS = {
    "Adam": lambda groups: torch.optim.Adam(groups, lr=1e-2),
    "Adam, foreach": lambda groups: torch.optim.Adam(groups, lr=1e-2, foreach=True),
    "Adam, fused": lambda groups: torch.optim.Adam(groups, lr=1e-2, fused=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=1e-3),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
}


# what they are


def test_they_are_the_vector_by_name(small):
    fast = oes.sparsify(small.net, small.mask)
    named = fast.named_weights()
    kept = small.mask.to_dict(small.net)
    dense = dict(small.net.named_parameters())
    assert list(named) == list(dense)
    for name, weights in named.items():
        assert weights.is_leaf
        assert torch.equal(weights, dense[name][kept[name]])
    assert torch.equal(torch.cat(list(named.values())), fast.weights)
    assert all(one is other for one, other in zip(named.values(), fast.named_weights().values(), strict=True))
    assert [name for name, _ in fast.named_parameters()] == ["weights"]
    assert "weights" in fast.state_dict()
    with torch.no_grad():
        named[DECAYED].fill_(2.0)
        fast.weights[-1] = 7.0
    assert (fast.to_dense().get_parameter(DECAYED)[kept[DECAYED]] == 2).all()
    assert list(named.values())[-1][-1] == 7


def test_without_a_mask_they_have_the_shapes_of_the_parameters(small):
    fast = oes.sparsify(small.net)
    for (name, weights), (own_name, parameter) in zip(
        fast.named_weights().items(), small.net.named_parameters(), strict=True
    ):
        assert name == own_name
        assert torch.equal(weights, parameter)


def test_parameters_of_which_nothing_is_kept_are_empty(small):
    masks = small.mask.to_dict(small.net)
    masks["1.1.1.bias"][:] = False
    fast = oes.sparsify(small.net, oes.Mask.from_dict(small.net, masks))
    named = fast.named_weights()
    assert named["1.1.1.bias"].shape == (0,)
    for make in OPTIMIZERS.values():
        step(fast, small, make(list(named.values())), named)


# training


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_train_as_those_of_the_dense_network(small, name):
    dense = copy.deepcopy(small.net)
    small.mask.apply_prune(dense)
    fast = oes.sparsify(small.net, small.mask)
    ours = fast.named_weights()
    theirs = {n.removesuffix("_orig"): p for n, p in dense.named_parameters()}
    mine, other = (OPTIMIZERS[name](grouped(named)) for named in (ours, theirs))
    for number in range(6):
        if number == 2:  # freeze a group: it stays from the next zero_grad on
            for group in (mine.param_groups[1], other.param_groups[1]):
                for weights in group["params"]:
                    weights.requires_grad_(False)
            frozen = [w.clone() for w in mine.param_groups[1]["params"]]
        if number == 4:
            assert all(map(torch.equal, frozen, mine.param_groups[1]["params"]))
            for group in (mine.param_groups[1], other.param_groups[1]):
                for weights in group["params"]:
                    weights.requires_grad_()
        none = number % 2 == 0
        assert step(fast, small, mine, ours, set_to_none=none) == pytest.approx(
            step(dense, small, other, theirs, set_to_none=none), rel=1e-9
        )
    # Together: what lies before a batch norm has a shift whose gradient is rounding alone.
    expected = torch.cat([w.detach().flatten() for w in theirs.values()])[small.mask.flat]
    assert_close(fast.weights.detach(), expected, rtol=1e-7)
    assert not all(map(torch.equal, frozen, mine.param_groups[1]["params"]))


def test_gradients_add_up_until_either_is_cleared(small):
    fast = oes.sparsify(small.net, small.mask)
    named = fast.named_weights()

    def backward():
        (fast(small.z) - small.noisy).square().mean().backward()
        return torch.cat([w.grad for w in named.values()])

    once = backward().clone()
    assert torch.equal(fast.weights.grad, once)
    assert_close(backward(), 2 * once)
    optimizer = torch.optim.SGD(named.values())
    for clear in (
        optimizer.zero_grad,
        lambda: optimizer.zero_grad(set_to_none=False),
        fast.zero_grad,
        lambda: fast.zero_grad(set_to_none=False),
    ):
        clear()
        assert_close(backward(), once)
        assert torch.equal(fast.weights.grad, torch.cat([w.grad for w in named.values()]))
    named[DECAYED].grad = None  # one alone
    backward()
    count = named[DECAYED].numel()
    assert_close(named[DECAYED].grad, once[:count])
    assert_close(fast.weights.grad[count:], 2 * once[count:])
    named[DECAYED].grad = torch.ones_like(named[DECAYED])  # another tensor in its place
    backward()
    assert_close(named[DECAYED].grad, once[:count] + 1)


def test_clipping_the_module_clips_them(small):
    fast = oes.sparsify(small.net, small.mask)
    named = fast.named_weights()
    fast(small.z).sum().backward()
    nn.utils.clip_grad_norm_(fast.parameters(), 1e-3)
    assert torch.cat([w.grad for w in named.values()]).norm() == pytest.approx(1e-3, rel=1e-3)


def test_asked_for_late_they_have_the_gradient_there_is(small):
    fast = oes.sparsify(small.net, small.mask)
    fast(small.z).sum().backward()
    assert torch.equal(torch.cat([w.grad for w in fast.named_weights().values()]), fast.weights.grad)


def test_parameters_that_the_network_holds_fixed_are_fixed(small):
    net = copy.deepcopy(small.net)
    net.get_parameter(DECAYED).requires_grad_(False)
    fast = oes.sparsify(net, small.mask)
    named = fast.named_weights()
    assert [name for name, w in named.items() if not w.requires_grad] == [DECAYED]
    fast(small.z).sum().backward()
    assert named[DECAYED].grad is None
    count = named[DECAYED].numel()
    assert not fast.weights.grad[:count].any()
    fast.zero_grad()
    named[DECAYED].requires_grad_()
    fast(small.z).sum().backward()
    assert fast.weights.grad[:count].any()
    assert torch.equal(named[DECAYED].grad, fast.weights.grad[:count])


# the module moves, is copied and saved


def test_they_follow_the_module(small):
    fast = oes.sparsify(small.net, small.mask)
    named = fast.named_weights()
    optimizer = torch.optim.Adam(named.values(), lr=1e-2)
    step(fast, small, optimizer, named)
    state = {name: tensor.clone() for name, tensor in fast.state_dict().items()}

    def shared():
        assert torch.equal(torch.cat(list(named.values())), fast.weights)
        assert all(w.dtype == fast.weights.dtype for w in named.values())
        step(fast, small, optimizer, named)
        assert torch.equal(torch.cat(list(named.values())), fast.weights)
        assert torch.equal(torch.cat([w.grad for w in named.values()]), fast.weights.grad)

    fast.float().double()
    shared()
    fast.load_state_dict(state)
    assert torch.equal(fast.weights, state["weights"])
    shared()
    fast.load_state_dict(copy.deepcopy(state), assign=True)
    assert torch.equal(fast.weights, state["weights"])
    shared()


def test_copies_have_their_own(small):
    fast = oes.sparsify(small.net, small.mask)
    fast.named_weights()[DECAYED].requires_grad_(False)
    fast(small.z).sum().backward()
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        named = other.named_weights()
        assert not named[DECAYED].requires_grad
        assert named["1.1.1.bias"].requires_grad
        before = fast.weights.detach().clone()
        step(other, small, torch.optim.SGD(named.values(), lr=0.1), named)
        assert torch.equal(fast.weights, before)
        assert not torch.equal(other.weights, before)
        assert torch.equal(torch.cat(list(named.values())), other.weights)


def test_nothing_keeps_a_module_alive(small):
    fast = oes.sparsify(small.net, small.mask)
    named = fast.named_weights()
    step(fast, small, torch.optim.SGD(named.values(), lr=0.1), named)
    gone = weakref.ref(fast.weights)
    del fast
    gc.collect()
    assert gone() is None
    assert all(torch.isfinite(w).all() for w in named.values())


def test_safetensors_saves_the_state(small, tmp_path):
    net = copy.deepcopy(small.net)
    net.register_buffer("table", torch.arange(6.0).view(2, 3).t())
    net.register_buffer("same", net.table)
    fast = oes.sparsify(net, small.mask)
    named = fast.named_weights()
    step(fast, small, torch.optim.SGD(named.values(), lr=0.1), named)
    save_file(fast.state_dict(), tmp_path / "fast.safetensors")
    other = oes.sparsify(net, small.mask)
    assert not torch.equal(other.weights, fast.weights)
    other.load_state_dict(load_file(tmp_path / "fast.safetensors"))
    for (name, tensor), again in zip(fast.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, again), name
    assert torch.equal(fast(small.z), other(small.z))
    whole = oes.sparsify(net)
    with pytest.raises(oes.MaskMismatchError, match=r"^state: made for network .*, loaded into network .*"):
        whole.load_state_dict(other.state_dict() | {"weights": whole.weights.detach()})
    with pytest.raises(oes.InputError, match=r"^state: expected a torch\.Tensor, got dict"):
        other.set_extra_state({"network": "", "mask": ""})


# losses of the parts themselves


def penalised(module, problem, weights, order, **options):
    """Backward of a loss of the image and a penalty on one part, which autograd meets first or last."""
    image = (module(problem.z) - problem.noisy).square().mean()
    penalty = weights[DECAYED].abs().sum()
    terms = {"part last": [penalty, image], "part first": [image, penalty], "apart": []}[order]
    if terms:
        sum(terms).backward(**options)
    else:
        penalty.backward(**options)
        image.backward(**options)


@pytest.mark.parametrize("order", ["part last", "part first", "apart"])
@pytest.mark.parametrize("cleared", ["optimizer", "optimizer to zero", "module", "flat", "never"])
def test_the_gradient_of_a_penalty_adds_up_with_that_of_the_image(small, order, cleared):
    dense = copy.deepcopy(small.net)
    fast = oes.sparsify(small.net).train()
    ours, theirs = fast.named_weights(), dict(dense.named_parameters())
    mine, other = (torch.optim.SGD(weights.values(), lr=1e-3, momentum=0.9) for weights in (ours, theirs))
    for _ in range(3):
        if cleared == "optimizer to zero":
            mine.zero_grad(set_to_none=False)
        else:
            {
                "optimizer": mine.zero_grad,
                "module": fast.zero_grad,
                "flat": torch.optim.SGD(fast.parameters()).zero_grad,
                "never": lambda: None,
            }[cleared]()
        if cleared != "never":
            other.zero_grad()
        penalised(fast, small, ours, order)
        penalised(dense, small, theirs, order)
        expected = torch.cat([w.grad.flatten() for w in theirs.values()])
        assert_close(torch.cat([w.grad.flatten() for w in ours.values()]), expected, rtol=1e-7)
        assert_close(fast.weights.grad, expected, rtol=1e-7)
        mine.step()
        other.step()


@pytest.mark.parametrize("part_first", [True, False])
def test_the_order_in_which_gradients_come_is_of_no_account(small, part_first):
    fast = oes.sparsify(small.net)
    named = fast.named_weights()
    part, ones = named[DECAYED], torch.ones_like(named[DECAYED])
    before = torch.zeros_like(fast.weights)
    for clear in (None, torch.optim.SGD(named.values()).zero_grad, fast.zero_grad, None):
        if clear is not None:
            clear()
            before.zero_()
        order = [lambda: part.backward(ones), lambda: fast.weights.backward(torch.full_like(fast.weights, 2))]
        for give in order if part_first else order[::-1]:
            give()
        expected = before + 2
        expected[: part.numel()] += 1
        assert torch.equal(fast.weights.grad, expected)
        assert torch.equal(torch.cat([w.grad.flatten() for w in named.values()]), expected)
        before = expected


def test_a_penalty_alone_gives_its_part_a_gradient(small):
    fast = oes.sparsify(small.net)
    named = fast.named_weights()
    fast(small.z).sum().backward()
    torch.optim.SGD(named.values()).zero_grad()
    for number in (1, 2):
        named[DECAYED].sum().backward()
        assert (named[DECAYED].grad == number).all()
        assert [name for name, w in named.items() if w.grad is not None] == [DECAYED]
        count = named[DECAYED].numel()
        assert (fast.weights.grad[:count] == number).all()
        assert not fast.weights.grad[count:].any()
    # Fixed parts that are let go have hooks as well.
    net = copy.deepcopy(small.net)
    net.get_parameter(DECAYED).requires_grad_(False)
    fast = oes.sparsify(net)
    part = fast.named_weights()[DECAYED].requires_grad_()
    part.sum().backward()
    fast(small.z).sum().backward()
    assert (part.grad.flatten() - fast.weights.grad[: part.numel()] == 0).all()
    again = oes.sparsify(small.net)
    again(small.z).sum().backward()
    assert_close(part.grad.flatten(), again.weights.grad[: part.numel()] + 1)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("part_first", [True, False])
def test_gradients_with_a_graph_of_their_own_add_up(small, part_first):
    fast = oes.sparsify(small.net, backend="torch", verify=False)
    named = fast.named_weights()
    part, count = named[DECAYED], named[DECAYED].numel()
    for _ in range(2):
        fast.zero_grad()
        order = [lambda: part.pow(3).sum(), lambda: fast.weights.pow(2).sum()]
        for give in order if part_first else order[::-1]:
            give().backward(create_graph=True)
        values = fast.weights.detach()
        expected = 2 * values
        expected[:count] += 3 * values[:count].square()
        assert torch.equal(torch.cat([w.grad.flatten() for w in named.values()]), fast.weights.grad)
        assert_close(fast.weights.grad.detach(), expected)
        second = torch.autograd.grad(part.grad.sum(), [part, fast.weights])
        assert_close(second[0], 6 * part.detach())
        assert (second[1][:count] == 2).all()


@pytest.mark.parametrize("none", [True, False])
def test_zero_grad_of_the_module_clears_the_parts(small, none):
    fast = oes.sparsify(small.net)
    named = fast.named_weights()
    fast(small.z).sum().backward()
    before = fast.weights.detach().clone()
    fast.zero_grad(set_to_none=none)
    assert all(w.grad is None if none else not w.grad.any() for w in named.values())
    torch.optim.SGD(named.values(), lr=1.0).step()
    assert torch.equal(fast.weights, before)


# other values by .data


@pytest.mark.parametrize("given", ["vector", "parts", "one part", "swapped"])
def test_values_given_by_data_are_taken_over(small, given):
    net = copy.deepcopy(small.net)
    fast = oes.sparsify(net, verify=False).train()
    named = fast.named_weights()
    optimizer = torch.optim.SGD(named.values(), lr=0.1)
    step(fast, small, optimizer, named)
    values = fast.weights.detach() * 1.5
    if given == "vector":
        nn.utils.vector_to_parameters(values.clone(), fast.parameters())
    elif given == "parts":
        nn.utils.vector_to_parameters(values.clone(), named.values())
    else:
        values = fast.weights.detach().clone()
        count = named[DECAYED].numel()
        if given == "one part":
            values[:count] = 0.5
            named[DECAYED].data = torch.full_like(named[DECAYED], 0.5)
        else:
            one, other = named["1.2.weight"], named["1.2.bias"]
            one.data, other.data = other.data, one.data
            values = torch.cat([w.detach().flatten() for w in named.values()])
            assert not torch.equal(values, fast.weights)
    dense = fast.to_dense() if given == "one part" else None
    saved = fast.state_dict()["weights"] if given == "parts" else copy.deepcopy(fast).weights
    assert torch.equal(saved, values)
    assert dense is None or torch.equal(nn.utils.parameters_to_vector(dense.parameters()), values)
    step(fast, small, optimizer, named)
    assert not torch.equal(fast.weights, values)
    assert torch.equal(torch.cat([w.flatten() for w in named.values()]), fast.weights)
    expected = oes.sparsify(net, verify=False).train()
    with torch.no_grad():
        expected.weights.copy_(values)
    step(expected, small, torch.optim.SGD(expected.parameters(), lr=0.1), None)
    assert_close(fast.weights.detach(), expected.weights.detach())


def test_a_vector_moved_between_forward_and_backward_takes_the_parts_along(small):
    fast = oes.sparsify(small.net)
    named = fast.named_weights()
    loss = fast(small.z).sum()
    fast.weights.data = fast.weights.data * 2
    before = fast.weights.detach().clone()
    loss.backward()
    torch.optim.SGD(named.values(), lr=0.1).step()
    assert_close(fast.weights.detach(), before - 0.1 * fast.weights.grad)


def test_values_by_data_that_do_not_fit_are_refused(small):
    fast = oes.sparsify(small.net)
    named = fast.named_weights()
    right = fast.weights.detach().clone()
    size = list(named[DECAYED].shape)
    for wrong in (torch.zeros(3, dtype=right.dtype), named[DECAYED].detach().float()):
        named[DECAYED].data = wrong
        with pytest.raises(
            oes.InputError, match=r"^named_weights\(\)\['1\.1\.1\.weight'\]: expected values of"
        ) as e:
            fast(small.z)
        assert str(size) in str(e.value)
        fast(small.z)  # once; it lies in the vector again
        assert list(named[DECAYED].shape) == size
        assert torch.equal(fast.weights, right)
    named[DECAYED].data = torch.zeros_like(named[DECAYED])
    fast.weights.data = right + 1
    with pytest.raises(
        oes.InputError, match=r"^named_weights\(\)\['1\.1\.1\.weight'\]: expected other values by"
    ):
        fast(small.z)
    assert torch.equal(torch.cat([w.flatten() for w in named.values()]), right + 1)
    fast.weights.data = right[1:]
    with pytest.raises(oes.InputError, match=r"^weights: expected shape \[\d+\], got \[\d+\]$"):
        fast(small.z)


def test_they_follow_to_another_parameter_of_the_module(small):
    fast = oes.sparsify(small.net)
    named = fast.named_weights()
    fast.weights = nn.Parameter(fast.weights.detach() * 2)
    before = fast.weights.detach().clone()
    step(fast, small, torch.optim.SGD(named.values(), lr=0.1), named)
    assert not torch.equal(fast.weights, before)
    assert torch.equal(torch.cat([w.flatten() for w in named.values()]), fast.weights)


def test_asked_for_in_inference_mode_they_train(small):
    fast = oes.sparsify(small.net)
    with torch.inference_mode():
        named = fast.named_weights()
        named[DECAYED].data = torch.ones_like(named[DECAYED])
        fast(small.z)
    assert (named[DECAYED] == 1).all()
    named[DECAYED].sum().backward()
    step(fast, small, torch.optim.SGD(named.values(), lr=0.1), named)
    assert torch.equal(torch.cat([w.flatten() for w in named.values()]), fast.weights)
    assert torch.equal(torch.cat([w.grad.flatten() for w in named.values()]), fast.weights.grad)


def test_a_functional_call_leaves_the_parts_alone(small):
    fast = oes.sparsify(small.net)
    named = fast.named_weights()
    other = fast.weights.detach() * 2
    image = torch.func.functional_call(fast, {"weights": other}, (small.z,))
    assert torch.equal(torch.cat([w.flatten() for w in named.values()]), fast.weights)
    assert not torch.equal(image, fast(small.z))


# what the documentation says


def test_weight_decay_of_the_flat_vector_moves_fixed_weights_and_that_of_the_parts_does_not(small):
    net = copy.deepcopy(small.net)
    net.get_parameter(DECAYED).requires_grad_(False)
    for flat in (True, False):
        fast = oes.sparsify(net, verify=False)
        named = fast.named_weights()
        before = named[DECAYED].detach().clone()
        weights = list(fast.parameters() if flat else named.values())
        step(fast, small, torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1), None)
        assert torch.equal(named[DECAYED], before) is not flat


def test_hooks_on_a_part_are_called_for_a_loss_of_the_part_alone(small):
    fast = oes.sparsify(small.net)
    part, called = fast.named_weights()[DECAYED], []
    part.register_hook(called.append)
    fast(small.z).sum().backward()
    assert not called
    part.sum().backward()
    assert len(called) == 1
