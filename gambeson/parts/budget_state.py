"""The state behind `gambeson.parts.PixelBudget`: stored maps, masks from a file, and counters."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from gambeson.core.errors import GambesonWarning, InputError
from gambeson.core.processes import gathered, rank_and_world, total
from gambeson.core.threat import L2, Linf
from gambeson.core.types import Batch, Rng
from gambeson.data.loader import Loader
from gambeson.data.placement import place
from gambeson.parts.budgets import PixelBudget
from gambeson.parts.cam import Site, class_activation_maps, find_site, normalised
from gambeson.parts.masks import Jet, MaskFile, Quadrant, Random, Rule, upsample
from gambeson.parts.state import Part


class BudgetState(Part):
    """The state behind `gambeson.parts.PixelBudget`.

    `maps` holds the stored maps, scaled to [0, 1], `(images, h, w)`, all zero where dead; `order` says whose mask each
    image gets in this epoch; `counts` are values at the full budget, values, dead maps and images, since the metrics
    were read.
    """

    maps: Tensor
    order: Tensor
    counts: Tensor

    def __init__(self, spec: PixelBudget, model: nn.Module) -> None:
        super().__init__()
        self.spec, self.warmup = spec, spec.warmup or 0
        self.warned = False
        self.site: Site | None = None
        like = next(model.parameters())
        self.register_buffer("maps", torch.zeros(0, dtype=like.dtype, device=like.device))
        self.register_buffer("order", torch.zeros(0, dtype=torch.int64, device=like.device))
        self.register_buffer("counts", torch.zeros(4, dtype=torch.int64, device=like.device))
        self.register_buffer("masks", torch.zeros(0, dtype=torch.bool, device=like.device), persistent=False)

    def prepare(self, model: nn.Module, loader: Loader, epochs: int) -> None:
        """Find the layer and read the masks, so that what cannot work is said before the training begins."""
        examples = loader.examples
        self.warmup = epochs // 4 if self.spec.warmup is None else self.spec.warmup
        if self.warmup >= epochs:
            raise InputError(
                f"a warm-up of {self.warmup} epochs leaves none of {epochs} for budgets per pixel",
                hint="lower --warmup (the paper: a quarter of the epochs), or train longer",
            )
        _, channels, height, width = examples.x.shape
        if isinstance(self.spec.mask, Jet):
            self.spec.mask.require_channels(channels)
        if isinstance(self.spec.mask, MaskFile):
            masks = self.spec.mask.read(examples.pool, channels, (height, width))
            self.masks = masks.to(self.counts.device)[examples.origin.to(self.counts.device)]
        if self.spec.needs_maps:
            self._find(model, loader.view(torch.arange(min(2, len(examples)), device=examples.x.device))[0])

    def begin_epoch(self, model: nn.Module, loader: Loader, epoch: int) -> None:
        """Make the stored maps anew where they are due, and draw whose mask each image gets."""
        spec, since = self.spec, epoch - self.warmup
        if since < 0:
            return
        device, count = self.counts.device, len(loader.examples)
        if spec.assign != "own":
            self.order = torch.randperm(count, generator=loader.streams.at("permute-masks", epoch)).to(device)
        if not spec.needs_maps or not spec.refresh:
            return
        shift = spec.assign == "release"  # it counts epochs from 1: after the warm-up, then when e % s == 0
        if since == 0 or (since + shift) % spec.refresh == 0:
            self._store(model, loader, epoch)

    def budget(self, model: nn.Module, batch: Batch, threat: Linf | L2, rng: Rng, epoch: int) -> Linf | L2:
        """The threat of this batch, with a budget for every pixel `(N, 1 or C, H, W)`."""
        if epoch < self.warmup:
            return threat
        assert isinstance(threat, Linf)  # the recipe has seen to it
        mask, dead = self.mask(model, batch, rng)
        self.counts[0] += mask.sum()
        self.counts[1] += mask.numel()
        self.counts[2] += dead.sum()
        self.counts[3] += len(dead)
        full = batch.x.new_full((), threat.eps) if isinstance(threat.eps, (int, float)) else threat.eps
        return threat.with_map(torch.where(mask, full, full.clamp_max(self.spec.eps_low)))

    def mask(self, model: nn.Module, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """Where the images of a batch keep the full budget, bool `(N, 1 or C, H, W)`, and whose maps are dead."""
        spec, none_dead = self.spec, torch.zeros(len(batch.x), dtype=torch.bool, device=batch.x.device)
        if isinstance(spec.mask, Random):
            return spec.mask(batch.x, rng("budget")), none_dead
        if isinstance(spec.mask, Quadrant):
            return spec.mask(batch.x), none_dead
        if isinstance(spec.mask, MaskFile):
            return self._placed(self.masks[self._whose(batch.index)], batch), none_dead
        if not spec.refresh:
            maps, dead = self._maps(model, batch.x)
            if spec.assign == "permuted":
                order = torch.randperm(len(maps), generator=rng("budget"), device=maps.device)
                maps, dead = maps[order], dead[order]
            return self._rule(maps, dead, batch, moved=False)
        if len(self.maps) == 0:
            raise InputError("there are no stored maps yet", hint="begin_epoch makes them; or use refresh=0")
        maps = self.maps[self._whose(batch.index)]
        return self._rule(maps, maps.amax((1, 2)) == 0, batch, moved=spec.assign != "release")

    def metrics(self) -> dict[str, float]:
        """Share of values at the full budget and number of images with a dead map, since this was read last."""
        full, values, dead, images = total(self.counts).tolist()
        self.counts.zero_()
        if not values:
            return {}
        if dead > images / 2 and not self.warned:
            self.warned = True
            warnings.warn(
                f"{dead} of {images} class-activation maps are empty: those images have the {self.spec.dead} budget"
                " everywhere; another layer, or a longer warm-up, may help",
                GambesonWarning,
                stacklevel=2,
            )
        return {"train/full_budget": full / values, **({"train/dead_maps": dead} if self.spec.needs_maps else {})}

    def _rule(self, maps: Tensor, dead: Tensor, batch: Batch, *, moved: bool) -> tuple[Tensor, Tensor]:
        assert isinstance(self.spec.mask, Rule)
        height, width = batch.x.shape[2:]
        mask = self.spec.mask(upsample(maps, (height, width)))
        if moved:
            mask = self._placed(mask, batch)
        return torch.where(dead.view(-1, 1, 1, 1), self.spec.dead == "full", mask), dead

    def _placed(self, mask: Tensor, batch: Batch) -> Tensor:
        return mask if batch.placement is None else place(mask, batch.placement)

    def _whose(self, index: Tensor) -> Tensor:
        return index if self.spec.assign == "own" else self.order[index]

    def _find(self, model: nn.Module, x: Tensor) -> Site:
        if self.site is None:
            self.site = find_site(model, x[:2], self.spec.cam.layer)
        return self.site

    def _maps(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        return normalised(class_activation_maps(model, x, self._find(model, x), self.spec.cam.method).maps)

    def _store(self, model: nn.Module, loader: Loader, epoch: int) -> None:
        def rng(number: int) -> torch.Generator:
            return loader.streams.at("augment-maps", epoch * loader.steps_per_epoch + number)

        walk = loader.walk(rng if self.spec.assign == "release" else None)
        found = [self._maps(model, x)[0] for x, _ in walk]
        self.maps = gathered(torch.cat(found) if found else self.maps[:0])

    def whole_state(self) -> dict[str, Tensor]:
        """The state, with the counts of all processes; maps and order are the same in all."""
        return {**self.state_dict(), "counts": total(self.counts)}

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        for name in ("maps", "order"):
            if len(state_dict[prefix + name]) == 0 and len(getattr(self, name)):
                # a rollback, within an epoch that needs them, to weights from before the first maps: these stay in use
                state_dict = {**state_dict, prefix + name: getattr(self, name)}
            else:  # their shapes are the data's
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.counts.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if rank_and_world()[0]:
            self.counts.zero_()  # they are of all processes: the first goes on with them
