"""The rounds of iterative magnitude pruning: their state, what they leave in a folder, and how they go on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.copies import copy_network
from oes_fast.errors import CheckpointError, CheckpointWarning, InputError, OutputError, warn_caller
from oes_fast.flat import FlatLayout, flatten, unflatten_
from oes_fast.mask import Mask, made_for
from oes_fast.pipelines.checkpoint import Checkpoint, digest, keep_unfinished, network_digest
from oes_fast.pipelines.differences import describe_image, describe_network
from oes_fast.pipelines.functions import run_network
from oes_fast.pipelines.history import History
from oes_fast.pipelines.inputs import ordinary
from oes_fast.pipelines.loop import Callback, StepInfo
from oes_fast.pipelines.objective import make_objective, prepare
from oes_fast.pipelines.train import train_sparse
from oes_fast.pruning.select import choose, highest, warn_of_empty_layers

_ROUNDS = "rounds.safetensors"  # in the folder of a run: what the rounds that are done found
_ROUND = "round-{}.safetensors"  # and the training under way


@dataclass(frozen=True, eq=False)
class ImpRound:
    """One round: training, then pruning.

    Attributes:
        density: that the round pruned to.
        mask: of that density: what the next round, or the ticket, trains.
        history: of the round's training, under the mask of the round before, at first a full one.
    """

    density: float
    mask: Mask
    history: History


@dataclass(frozen=True, eq=False, repr=False)
class ImpResult:
    """What :func:`oes_fast.pruning.imp_rounds` returns.

    Attributes:
        mask: of the last round that was finished; where there is none, of what the first trains.
        net: network with weights and running statistics of step ``rewind_step``: what the ticket starts from.
            Where the run was stopped before that step, the initial ones.
        rounds: all rounds that were finished, in order.
        interrupted: stopped before the end of the last round, by Ctrl-C or a callback.
        seconds: time this call took.
        backend: that trained the last round, None where a resumed run had nothing left to train.
    """

    mask: Mask
    net: nn.Module
    rounds: tuple[ImpRound, ...]
    interrupted: bool
    seconds: float
    backend: str | None

    def __repr__(self) -> str:
        """One line, without the network."""
        done = ", ".join(f"{100 * each.density:.3g}" for each in self.rounds) or "0"
        where = f" on {self.backend}" if self.backend else ""
        ended = ", interrupted" if self.interrupted else ""
        return f"ImpResult(rounds to {done} % in {self.seconds:.3g} s{where}{ended}, {self.mask!r})"

    def at(self, density: float) -> Mask:
        """The mask of the round that pruned to ``density``.

        Raises:
            InputError: no round that was finished did.
        """
        for each in self.rounds:
            if math.isclose(each.density, density, rel_tol=1e-9):
                return each.mask
        known = ", ".join(f"{each.density:g}" for each in self.rounds) or "none"
        raise InputError(f"density: expected that of a round that was finished ({known}), got {density}")


@dataclass(frozen=True)
class Schedule:
    """What the rounds do; the arguments of :func:`oes_fast.pruning.imp_rounds`.

    Attributes:
        densities: after each round.
        steps: of the first round.
        lr: Adam's learning rate.
        rewind_step: to which weights go back.
        scope: of the choice.
        small: what becomes of small parameters.
        seed: of the tie-break.
        published: drop what is 0 at the start.
    """

    densities: Sequence[float]
    steps: int
    lr: float
    rewind_step: int
    scope: str
    small: str
    seed: int
    published: bool


class Tickets:
    """A run of all rounds.

    Args:
        net: generator; left alone.
        z: input.
        noisy: image to fit.
        plan: what to do.
        options: further arguments of :func:`oes_fast.train_sparse`, the same in every round.
        folder: where to keep the state, or None.
        resume: go on from there.
    """

    def __init__(
        self,
        net: nn.Module,
        z: Tensor,
        noisy: Tensor,
        plan: Schedule,
        options: Mapping[str, Any],
        *,
        folder: str | os.PathLike[str] | None,
        resume: bool,
    ) -> None:
        self._began = time.monotonic()
        self._net, self._z, self._noisy = net, z, noisy
        self._plan, self._options, self._resume = plan, options, resume
        self._layout = FlatLayout.of(net)
        # What goes back to the start needs no step to be waited for.
        self._rewound = copy_network(net) if plan.rewind_step == 0 else None
        weights = flatten(net)
        kept = weights != 0 if plan.published else torch.ones_like(weights, dtype=torch.bool)
        self._start = made_for(net, kept.cpu(), self._settings(0))
        self._rounds: list[ImpRound] = []
        self._stopped = False
        self._folder = None if folder is None else _made(folder)
        self._store = self._checkpoint()
        if self._folder is not None and not resume:
            of_rounds = sorted(self._folder.glob(_ROUND.format("*")))
            keep_unfinished([self._folder / _ROUNDS, *of_rounds], self._folder / "rounds")
        self._load()

    def run(self, callback: Callback | None) -> ImpResult:
        """Train and prune until the last round is done, or somebody stops it."""
        backend, interrupted = None, False
        while len(self._rounds) < len(self._plan.densities) and not interrupted:
            number = len(self._rounds) + 1
            steps = self._plan.steps - (self._plan.rewind_step if number > 1 else 0)
            net = self._net if number == 1 else self._rewound
            if net is None:  # a save failed, and the run was broken off and resumed behind that step
                raise CheckpointError(
                    f"{self._folder}: expected the weights of step {self._plan.rewind_step} in it, got none",
                    path=self._folder,
                )
            path = None if self._folder is None else self._folder / _ROUND.format(number)
            fit = train_sparse(
                net,
                self._mask(),
                self._z,
                self._noisy,
                steps=steps,
                lr=self._plan.lr,
                callback=self._told(callback, number),
                checkpoint=path,
                resume=self._resume,
                **self._options,
            )
            backend = fit.backend
            interrupted = fit.interrupted or self._stopped
            if fit.steps < steps:
                break
            self._prune(flatten(fit.net), fit.history)
            if self._save() and path is not None:
                with suppress(OSError):
                    path.unlink()
        done = len(self._rounds) == len(self._plan.densities)
        return ImpResult(
            mask=self._mask(),
            net=copy_network(self._net) if self._rewound is None else self._rewound,
            rounds=tuple(self._rounds),
            interrupted=interrupted and not done,
            seconds=time.monotonic() - self._began,
            backend=backend,
        )

    def _mask(self) -> Mask:
        return self._rounds[-1].mask if self._rounds else self._start

    def _settings(self, number: int) -> dict[str, Any]:
        """Of the mask after round ``number``, 0 for what the first round trains."""
        plan = asdict(self._plan)
        density = plan.pop("densities")[number - 1] if number else 1.0
        published = {"published": True} if plan.pop("published") else {}
        return {"method": "imp", "density": density, "round": number, **plan, **published}

    def _prune(self, weights: Tensor, history: History) -> None:
        plan, before = self._plan, self._mask().flat
        number = len(self._rounds) + 1
        density = plan.densities[number - 1]
        scores = weights.abs().cpu()
        if plan.published:  # every weight competes, and the count is of those left
            flat = torch.zeros_like(before)
            places = before.nonzero().flatten()
            flat[places[highest(scores, places, round(density * flat.numel()), plan.seed)]] = True
        else:
            flat = choose(
                self._net,
                scores,
                density,
                scope=plan.scope,
                small=plan.small,
                seed=plan.seed,
                among=before,
            )
        warn_of_empty_layers(self._net, flat)
        mask = made_for(self._net, flat, self._settings(number))
        self._rounds.append(ImpRound(density, mask, history))

    def _told(self, callback: Callback | None, number: int) -> Callback:
        """What is told of every step of a round: keeps the weights to go back to, then asks the caller."""
        phase = f"imp round {number} of {len(self._plan.densities)}"

        def told(info: StepInfo) -> object:
            if self._rewound is None and info.step == self._plan.rewind_step:
                self._keep(info._run.state())
            if callback is None:
                return False
            answer = callback(replace(info, phase=phase))
            with suppress(Exception):  # the loop says what is neither true nor false
                self._stopped = bool(answer) or self._stopped
            return answer

        return told

    def _keep(self, state: Mapping[str, Tensor]) -> None:
        """Weights and running statistics of a training run, as a network."""
        weights = state["weights"].detach()
        if weights.numel() < self._layout.numel:  # of the rewritten network: those that the mask keeps
            kept = self._start.flat.to(weights.device)
            weights = weights.new_zeros(self._layout.numel).masked_scatter(kept, weights)
        self._rewound = self._network(weights, state)
        self._save()

    def _network(self, weights: Tensor, state: Mapping[str, Tensor]) -> nn.Module:
        net = copy_network(self._net)
        unflatten_(net, weights)
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(state[f"buffer.{name}"])
        return net

    def _checkpoint(self) -> Checkpoint:
        clean, entry = self._options["clean"], self._options["entry"]
        images = {"z": self._z} | ({} if clean is None else {"clean": clean})
        compared = {name: self._options[name] for name in ("forward", "loss", "weight", "tv")}
        objective = make_objective(ordinary(self._noisy), clean=clean, **compared)
        if self._folder is not None:
            net = copy_network(self._net).train()
            prepare(objective, lambda: run_network(net, self._z, entry), self._z.device)
        plan = asdict(self._plan)
        return Checkpoint(
            None if self._folder is None else self._folder / _ROUNDS,
            {
                "phase": "imp",
                **plan,
                "densities": list(self._plan.densities),
                "precision": self._options["precision"],
                "record_every": self._options["record_every"],
                "network": network_digest(self._net),
                "weights": digest(flatten(self._net), *self._net.buffers()),
                "clean": None,
                **{name: digest(image) for name, image in images.items()},
                **({} if entry is None else {"entry": entry}),
                **objective.settings(),
            },
            steps=len(self._plan.densities),
            every_seconds=self._options["checkpoint_seconds"],
            resume=self._resume,
            words={"network": describe_network(self._net)}
            | {name: describe_image(image) for name, image in images.items()}
            | objective.words(),
            device=self._z.device,
        )

    def _save(self) -> bool:
        """Keep what was found so far; whether that is safe."""
        rows = [torch.empty(0, 5, dtype=torch.float64, device="cpu")]
        for number, each in enumerate(self._rounds):
            own = each.history.rows
            rows.append(torch.cat([torch.full_like(own[:, :1], number), own], dim=1))
        state = {
            # Records of all rounds; what each begins with is the number of its round.
            "history": torch.cat(rows),
            "masks": torch.stack([self._start.flat, *(round.mask.flat for round in self._rounds)]),
        }
        if self._rewound is not None:
            state["weights"] = flatten(self._rewound)
            state |= {f"buffer.{name}": buffer for name, buffer in self._rewound.named_buffers()}
        try:
            self._store.save(len(self._rounds), state)
        except Exception as error:  # a full disk, say, is no reason to lose what is computed
            text = " ".join(str(error).split()) or type(error).__name__
            done = len(self._rounds)
            warn_caller(f"{text}; the run goes on without a checkpoint of {done} rounds", CheckpointWarning)
            return False
        return True

    def _load(self) -> None:
        resumed = self._store.load()
        if resumed is None:
            return
        done, state = resumed
        if "weights" in state:
            self._rewound = self._network(state["weights"], state)
        rows = state["history"]
        for number, flat in enumerate(state["masks"][1 : done + 1]):
            history = History(rows[rows[:, 0] == number][:, 1:])
            mask = made_for(self._net, flat.clone(), self._settings(number + 1))
            self._rounds.append(ImpRound(self._plan.densities[number], mask, history))


def _made(folder: str | os.PathLike[str]) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"checkpoint: expected the name of a folder or None, got {type(folder).__name__}")
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot make the folder: {error.strerror or error}") from error
    return path
