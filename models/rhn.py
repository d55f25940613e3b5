"""The Recurrent Highway Network of Zilly et al., "Recurrent Highway Networks" (arXiv 1607.03474).

In each time step of a recurrent layer, the state s passes through D highway layers. In each of these, the transform
gate t is the share of s that the candidate h replaces, and the carry gate is 1 - t. The input enters only the first:

    h = tanh(W_H x + R_H s + b_H)       t = sigmoid(W_T x + R_T s + b_T)       s = t * h + (1 - t) * s

Arithmetic, initialisation and dropout follow the authors' TensorFlow program. Dropout masks are drawn once for each row
of a minibatch and kept for all its time steps and depths (Gal and Ghahramani, arXiv 1512.05287).
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.kernels import cells, highway


def create(
    input_size: int,
    rnn_size: int,
    n_layers: int,
    dropout: float,
    *,
    depth: Annotated[int, "highway layers per time step"] = 5,
    tie_embeddings: Annotated[bool, "decode with the transposed embedding"] = False,
    init_bias: Annotated[float, "initial bias of the transform gates"] = -2.0,
    init_scale: Annotated[float, "initial weights are uniform in +- this value"] = 0.04,
    other_bias: Annotated[Literal["random", "constant"], "all other initial biases: as the weights, or 0"] = "random",
    drop_x: Annotated[float | None, "dropout of whole tokens; none = same as -dropout"] = None,
    drop_i: Annotated[float | None, "dropout of each layer's input; none = same as -dropout"] = None,
    drop_h: Annotated[float | None, "dropout of the state inside the gates; none = same as -dropout"] = None,
    drop_o: Annotated[float | None, "dropout of the last layer's output; none = same as -dropout"] = None,
    share_masks: Annotated[bool, "share one mask between candidate and transform gate"] = True,
) -> RHN:
    """Build the network with the sizes and initial weights of the authors' program.

    An untied embedding has min(input_size, rnn_size) columns, a tied one rnn_size. With fewer than rnn_size columns,
    the program allows only one layer. Here the upper layers take rnn_size inputs, so there may be any number of layers.

    Raises ValueError if an option is out of range.
    """
    rates = {"drop_x": drop_x, "drop_i": drop_i, "drop_h": drop_h, "drop_o": drop_o}
    drops = {name: dropout if rate is None else rate for name, rate in rates.items()}
    for name, rate in drops.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, not {rate:g}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    if init_scale < 0:
        raise ValueError(f"init_scale must be at least 0, not {init_scale:g}")
    model = RHN(input_size, rnn_size, n_layers, depth, tie_embeddings, Drops(*drops.values()), share_masks)
    model.initialise(init_scale, init_bias, other_bias == "random")
    return model


class Drops(NamedTuple):
    """The dropout rates, one for each field of Masks."""

    x: float
    i: float
    h: float
    o: float


class Masks(NamedTuple):
    """Dropout factors, each 0 or 1 / (1 - rate), drawn independently for each row.

    M is 1 if the candidate and the transform gate share a mask, and 2 if each has its own. Masks drawn for one time
    step fit any number of time steps.
    """

    x: Tensor  # on the embedded tokens (T, B, 1)
    i: tuple[Tensor, ...]  # on each layer's input (M, B, I)
    h: tuple[Tensor, ...]  # on each layer's state, where it enters the gates (M, B, S)
    o: Tensor  # on the last layer's outputs (B, S)


def cell(x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None = None) -> Tensor:
    """Return the state (B, S) after one time step of a layer.

    x (M, B, I) is the input, already masked; s (B, S) is the state before; n (M, B, S) are the masks on s.
    """
    for d, (R_d, b_d) in enumerate(zip(R, b, strict=True)):
        z = s if n is None else n * s
        a = torch.baddbmm(b_d, z.expand(2, *s.shape), R_d)
        if d == 0:
            a = a + x @ W
        h, t = a[0].tanh(), a[1].sigmoid()
        s = torch.lerp(s, h.to(s), t.to(s))  # t * h + (1 - t) * s, in s's dtype even under autocast
    return s


def loop(x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None = None) -> Tensor:
    """Do the same as highway.scan, step by step: return the states (T, B, S) for x (M, T, B, I)."""
    states = []
    for x_t in x.unbind(1):
        s = cell(x_t, s, W, R, b, n)
        states.append(s)
    return torch.stack(states)


class RHN(nn.Module):
    """An embedding, stacked recurrent highway layers and a linear decoder. The state is (s,), of shape (L, B, S).

    Each layer has weights W (2, I, S) and R (D, 2, S, S), which multiply from the right, and biases b (D, 2, 1, S). On
    the axis of size 2, the candidate comes first and the transform gate second.

    ``use_kernel = False`` leaves the time loop to autograd: slower, but differentiable more than once.
    """

    def __init__(
        self, input_size: int, rnn_size: int, n_layers: int, depth: int, tied: bool, drops: Drops, share_masks: bool
    ) -> None:
        super().__init__()
        in_size = rnn_size if tied else min(input_size, rnn_size)
        sizes = [in_size] + [rnn_size] * (n_layers - 1)
        self.embedding = nn.Parameter(torch.empty(input_size, in_size))
        self.W = nn.ParameterList(torch.empty(2, size, rnn_size) for size in sizes)
        self.R = nn.ParameterList(torch.empty(depth, 2, rnn_size, rnn_size) for _ in sizes)
        self.b = nn.ParameterList(torch.empty(depth, 2, 1, rnn_size) for _ in sizes)
        self.softmax_w = None if tied else nn.Parameter(torch.empty(input_size, rnn_size))
        self.softmax_b = nn.Parameter(torch.empty(input_size))
        self.in_sizes, self.rnn_size = sizes, rnn_size
        self.drops, self.share_masks = drops, share_masks
        self.use_kernel = True

    @torch.no_grad()
    def initialise(self, scale: float, transform_bias: float, random_biases: bool) -> None:
        """Draw all parameters uniformly in +-scale, then set the transform biases; other biases are 0 unless random."""
        for p in self.parameters():
            p.uniform_(-scale, scale)
        for b in self.b:
            b[:, 1] = transform_bias
        if not random_biases:
            for bias in (self.softmax_b, *(b[:, 0] for b in self.b)):
                bias.zero_()

    @property
    def has_compiled_kernels(self) -> bool:
        return self.use_kernel

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None, masks: Masks | None = None
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Read token ids x, int64 (T, B). Returns logits (T, B, V) and the state after step T.

        ``masks`` come from ``draw_masks``. If None, training mode draws them, and evaluation mode uses none.
        """
        if masks is None and self.training and any(self.drops):
            masks = self.draw_masks(x)
        scan = highway.scan if self.use_kernel else loop
        e = F.embedding(x, self.embedding)
        if masks:
            e = e * masks.x
        final = []
        for l, (s, W, R, b) in enumerate(zip(self.start(x, state), self.W, self.R, self.b, strict=True)):
            e = masks.i[l].unsqueeze(1) * e if masks else e.unsqueeze(0)
            e = scan(e, s, W, R, b, masks.h[l] if masks else None)
            final.append(e[-1])
        return self.decode(e * masks.o if masks else e), (torch.stack(final),)

    def step(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor]]:
        """Take one time step, for sampling: x int64 (B,), logits (B, V). Same as ``forward`` without dropout."""
        e = F.embedding(x, self.embedding)
        final = []
        for s, W, R, b in zip(self.start(x, state), self.W, self.R, self.b, strict=True):
            e = cell(e.unsqueeze(0), s, W, R, b)
            final.append(e)
        return self.decode(e), (torch.stack(final),)

    def numpy_step(self) -> cells.Step:
        """Return ``step`` for numpy arrays, with the current weights: faster for a few rows on a CPU."""
        W = [self.embedding @ self.W[0], *self.W[1:]]  # so the first layer's products are look-ups
        decoder = self.embedding if self.softmax_w is None else self.softmax_w
        layers = [cells.Highway(*weights) for weights in zip(W, self.R, self.b, strict=True)]
        return cells.stack(layers, cells.Linear(decoder, self.softmax_b))

    def start(self, x: Tensor, state: tuple[Tensor, ...] | None) -> Tensor:
        """Return the initial s (L, B, S): that of the given state, or zeros for None."""
        return self.embedding.new_zeros(len(self.R), x.shape[-1], self.rnn_size) if state is None else state[0]

    def decode(self, y: Tensor) -> Tensor:
        """Return the logits (..., V) for the top layer's outputs (..., S)."""
        return F.linear(y, self.embedding if self.softmax_w is None else self.softmax_w, self.softmax_b)

    def draw_masks(self, x: Tensor, generator: torch.Generator | None = None) -> Masks:
        """Draw masks for token ids x, int64 (T, B), from the generator or torch's global one.

        A rate of 0 gives ones and uses no random numbers.
        """
        T, B = x.shape
        M = 1 if self.share_masks else 2
        device = x.device if generator is None else generator.device

        def draw(drop: float, *shape: int) -> Tensor:
            if drop == 0:
                return self.embedding.new_ones(shape)
            keep = 1 - drop
            u = torch.rand(shape, generator=generator, device=device, dtype=self.embedding.dtype)
            return (u < keep).to(self.embedding) / keep

        return Masks(
            x=tie_repeats(draw(self.drops.x, T, B), x, len(self.embedding)).unsqueeze(-1),
            i=tuple(draw(self.drops.i, M, B, size) for size in self.in_sizes),
            h=tuple(draw(self.drops.h, M, B, self.rnn_size) for _ in self.in_sizes),
            o=draw(self.drops.o, B, self.rnn_size),
        )


def tie_repeats(mask: Tensor, x: Tensor, input_size: int) -> Tensor:
    """Return mask (T, B) with all occurrences of a token in a row of text given the entry of the first. x (T, B)."""
    T, B = x.shape
    steps = torch.arange(T, device=x.device).unsqueeze(1).expand(T, B)
    first = steps.new_full((input_size, B), T).scatter_reduce_(0, x, steps, "amin")
    return mask.gather(0, first.gather(0, x))
