"""Eigenvalues and spectrum of the Hessian against the whole matrix."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import unchanged
from dense_derivatives import full_hessian, tiny_problem
from torch import nn

import oes_fast as oes
from oes_fast.analysis import hessian_eigenvalues, hessian_spectrum
from oes_fast.analysis.weights import probe


@pytest.fixture(scope="module", params=["Lanczos", "few weights"])
def tiny(request, many):
    if request.param == "Lanczos":
        return many
    few = tiny_problem(scales=(1,), density=0.5)
    assert few.mask.kept < 64 < many.mask.kept
    return few


@pytest.fixture(scope="module")
def many():
    return tiny_problem()


@pytest.fixture(scope="module")
def whole(many):
    return full_hessian(many.net, many.mask, many.z, many.noisy)


class TestEigenvalues:
    @pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
    def test_they_are_those_of_the_whole_matrix(self, tiny, which):
        exact = torch.linalg.eigvalsh(full_hessian(tiny.net, tiny.mask, tiny.z, tiny.noisy))
        key = {"largest": -exact, "smallest": exact, "magnitude": -exact.abs()}[which]
        wanted = exact[key.argsort()[:3]].sort(descending=True).values
        found = hessian_eigenvalues(
            tiny.net, tiny.mask, tiny.z, tiny.noisy, k=3, which=which, tolerance=0.0, verify=False
        )
        scale = float(exact.abs().max())
        assert scale > 0
        torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-9 * scale)
        assert float(found.residuals.max()) < 1e-9 * scale
        assert found.vectors.shape == (tiny.mask.kept, 3)
        torch.testing.assert_close(
            found.vectors.T @ found.vectors, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8
        )

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    def test_a_dense_network_has_them_too(self, many, backend):
        found = hessian_eigenvalues(
            many.net, None, many.z, many.noisy, k=2, tolerance=0.0, backend=backend, verify=False
        )
        exact = torch.linalg.eigvalsh(full_hessian(many.net, None, many.z, many.noisy))
        torch.testing.assert_close(found.values, exact.flip(0)[:2], rtol=1e-9, atol=0)

    def test_all_of_them_may_be_asked_for(self, many, whole):
        count = many.mask.kept
        found = hessian_eigenvalues(many.net, many.mask, many.z, many.noisy, k=count, verify=False)
        exact = torch.linalg.eigvalsh(whole).flip(0)
        torch.testing.assert_close(found.values, exact, rtol=0, atol=1e-9 * float(exact.abs().max()))
        with pytest.raises(oes.InputError, match=f"k: expected at most {count}"):
            hessian_eigenvalues(many.net, many.mask, many.z, many.noisy, k=count + 1, verify=False)

    def test_residuals_bound_the_error(self, many, whole):
        found = hessian_eigenvalues(many.net, many.mask, many.z, many.noisy, k=3, tolerance=0.2, verify=False)
        exact = torch.linalg.eigvalsh(whole)
        for value, residual in zip(found.values, found.residuals, strict=True):
            assert float((exact - value).abs().min()) <= float(residual) + 1e-12

    def test_trained_weights_are_taken_as_they_are(self, many):
        fit = oes.train_sparse(
            many.net, many.mask, many.z, many.noisy, steps=20, backend="torch", verify=False
        )
        found = hessian_eigenvalues(fit.net, fit.mask, many.z, many.noisy, k=2, tolerance=0.0, verify=False)
        exact = torch.linalg.eigvalsh(full_hessian(fit.net, fit.mask, many.z, many.noisy)).flip(0)
        torch.testing.assert_close(found.values, exact[:2], rtol=1e-8, atol=0)

    def test_what_has_not_converged_is_no_result(self, many):
        with pytest.raises(oes.OESError, match=r"of 8 eigenvalues have converged to 0 after \d+"):
            hessian_eigenvalues(
                many.net, many.mask, many.z, many.noisy, k=8, tolerance=0.0, iterations=1, verify=False
            )

    def test_runs_repeat_bit_for_bit_and_leave_everything_alone(self, many):
        def run():
            return hessian_eigenvalues(many.net, many.mask, many.z, many.noisy, k=2, verify=False)

        with unchanged(many.net, many.z, many.noisy):
            first = run()
        torch.manual_seed(5)
        again = run()
        assert torch.equal(first.values, again.values)
        assert torch.equal(first.vectors, again.vectors)
        assert "vectors" not in repr(first)
        assert f"{float(first.values[0]):.4g}" in repr(first)

    def test_float32_networks_come_close(self, many, whole):
        found = hessian_eigenvalues(
            tiny_problem().net.float(),
            many.mask,
            many.z.float(),
            many.noisy.float(),
            k=2,
            tolerance=1e-4,
        )
        exact = torch.linalg.eigvalsh(whole).flip(0)
        torch.testing.assert_close(found.values, exact[:2], rtol=1e-3, atol=0)
        assert found.vectors.dtype == torch.float32

    def test_weights_that_change_nothing_have_no_curvature(self, many):
        names = [name for name, _ in many.net.named_parameters()]
        masks = {name: torch.full(p.shape, name == names[1]) for name, p in many.net.named_parameters()}
        mask = oes.Mask.from_dict(many.net, masks)
        found = hessian_eigenvalues(many.net, mask, many.z, many.noisy, k=2, verify=False)
        assert found.values.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"backend": "auto"}, "backend: expected one of torch, reference"),
            ({"which": "middle"}, "which: expected one of largest"),
            ({"k": 0}, "k: expected an integer >= 1"),
            ({"iterations": 0}, "iterations: expected an integer >= 1"),
            ({"noisy": torch.zeros(1, 1, 9, 9, dtype=torch.float64)}, "noisy: expected shape"),
            ({"noisy": torch.zeros(1, 3, 12, 12, dtype=torch.float64)}, "net: expected an output of"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_bad_arguments_are_named(self, many, change, message):
        arguments = {"net": many.net, "mask": many.mask, "z": many.z, "noisy": many.noisy, "verify": False}
        with pytest.raises(oes.InputError, match=message):
            hessian_eigenvalues(**arguments | change)


class TestSpectrum:
    def test_points_and_weights_have_the_moments_of_the_matrix(self, many, whole):
        steps = 6
        found = hessian_spectrum(
            many.net, many.mask, many.z, many.noisy, probes=2, steps=steps, seed=4, verify=False
        )
        assert found.count == many.mask.kept
        assert found.products == 2 * steps
        for index in range(2):
            start = probe(4, index, torch.Size([found.count]), whole)
            moved = start.clone()
            scale = float(torch.linalg.eigvalsh(whole).abs().max())
            for power in range(2 * steps):
                exact = float(start @ moved) / found.count
                estimate = float((found.points[index] / scale) ** power @ found.weights[index])
                assert estimate == pytest.approx(exact, rel=1e-8, abs=1e-10), power
                moved = whole @ moved / scale

    def test_the_whole_space_gives_every_eigenvalue(self, many, whole):
        found = hessian_spectrum(
            many.net, many.mask, many.z, many.noisy, probes=3, steps=10_000, verify=False
        )
        exact = torch.linalg.eigvalsh(whole)
        scale = float(exact.abs().max())
        assert found.largest == pytest.approx(float(exact[-1]), rel=1e-9)
        assert found.smallest == pytest.approx(float(exact[0]), rel=1e-9)
        for points in found.points:
            for point in points:
                assert float((exact - point).abs().min()) < 1e-8 * scale
        assert found.products <= 3 * many.mask.kept

    def test_trace_and_shares_are_those_of_all_eigenvalues(self, many, whole):
        found = hessian_spectrum(many.net, many.mask, many.z, many.noisy, probes=40, steps=12, verify=False)
        exact = torch.linalg.eigvalsh(whole)
        assert abs(found.trace - float(exact.sum())) < 4 * found.trace_error
        assert found.trace_error < 0.5 * abs(float(exact.sum()))
        middle = float(exact[-2:].mean())
        assert found.share(middle) == pytest.approx(1 - 1 / found.count, abs=0.02)
        assert found.share(math.inf) == pytest.approx(1)
        assert found.share(-math.inf) == 0

    def test_the_density_is_one(self, many):
        found = hessian_spectrum(many.net, many.mask, many.z, many.noisy, probes=2, steps=8, verify=False)
        width = 0.02 * (found.largest - found.smallest)
        grid = torch.linspace(found.smallest - 6 * width, found.largest + 6 * width, 2000)
        density = found.density(grid, width)
        assert float(torch.trapezoid(density, grid.double())) == pytest.approx(1, abs=1e-3)
        assert (density.shape, density.dtype) == (grid.shape, torch.float64)
        assert float(density.min()) >= 0
        with pytest.raises(oes.InputError, match="width: expected a finite number > 0"):
            found.density(grid, 0.0)

    def test_lanczos_ends_where_its_space_does(self):
        """A linear network with two equal inputs: an eigenvalue, and zero, whatever the steps."""
        net = nn.Conv2d(2, 1, 1, bias=False).double()
        z = torch.rand(1, 1, 8, 8, dtype=torch.float64).expand(1, 2, 8, 8).contiguous()
        noisy = torch.rand(1, 1, 8, 8, dtype=torch.float64)
        found = hessian_spectrum(net, None, z, noisy, probes=3, steps=20)
        exact = 4 * float((z[:, 0] ** 2).mean())
        assert found.products <= 6
        assert all(len(points) <= 2 for points in found.points)
        for points in found.points:
            for point in points.tolist():
                assert min(abs(point), abs(point - exact)) < 1e-12

    def test_runs_repeat_bit_for_bit_and_leave_everything_alone(self, many):
        def run(seed, backend="torch"):
            return hessian_spectrum(
                many.net,
                many.mask,
                many.z,
                many.noisy,
                probes=2,
                steps=5,
                seed=seed,
                backend=backend,
                verify=False,
            )

        with unchanged(many.net, many.z, many.noisy):
            first = run(1)
        torch.manual_seed(5)
        again = run(1)
        assert all(map(torch.equal, first.points + first.weights, again.points + again.weights))
        assert not torch.equal(run(2).points[0], first.points[0])
        for ours, theirs in zip(first.points, run(1, "reference").points, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        assert "trace" in repr(first)
        assert math.isnan(
            hessian_spectrum(
                many.net, many.mask, many.z, many.noisy, probes=1, steps=1, verify=False
            ).trace_error
        )

    @pytest.mark.parametrize("name", ["probes", "steps"])
    def test_bad_arguments_are_named(self, many, name):
        with pytest.raises(oes.InputError, match=f"{name}: expected an integer >= 1"):
            hessian_spectrum(many.net, many.mask, many.z, many.noisy, **{name: 0})
