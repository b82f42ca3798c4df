"""The resize of evaluation (`imgrec.data.decode.fit_to_size`) as products of matrices, which every runtime computes alike.

ONNX's Resize has an `antialias`, which ONNX Runtime has on the CPU only, OpenVINO ignores and TensorRT refuses. And it is not
torch's resize: one pixel in 900 came out one gray level apart, which moved probabilities by up to 5e-4 on 200 photographs.
Here the pixels are torch's, bit for bit.
"""

import torch
from torch import Tensor, nn

from imgrec.data.decode import MAX_ASPECT, Preprocessing

Size = int | torch.SymInt  # which depends on the image while the graph is written

BLOCK = 16  # outputs that share a window of inputs: fewer copy more bytes, more multiply more zeros
WEIGHT_BITS = 15  # of torch's weights, integers of 16 bits with a sign
MOST_BITS = 22  # of them after the point
LOWER = 128  # a weight is LOWER * upper + lower: float32 holds the sums of their products with bytes, in any order


class FitToSize(nn.Module):
    """uint8 [B, H, W, C] -> float32 [B, C, S, S], whole numbers from 0 to 255: what `fit_to_size` gives.

    Along the width first, rounded, then along the height, as torch. All sizes are computed from those of the input.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.size, self.cubic = preprocessing["image_size"], preprocessing["interpolation"] == "bicubic"
        crop = preprocessing["resize"] == "crop"
        self.shortest = max(self.size, round(self.size / preprocessing["crop_share"])) if crop else None

    def forward(self, images: Tensor) -> Tensor:
        batch, height, width, channels = images.shape
        shorter = torch.sym_min(height, width)
        # Two-dimensional transposes, for which runtimes have fast code: a tenth of the time of moving three bytes each.
        columns = images.reshape(batch, height, width * channels).transpose(1, 2).reshape(batch, width, channels * height)
        columns = self._resize(columns, batch, width, shorter)
        rows = columns.reshape(batch, self.size * channels, height).transpose(1, 2)
        rows = self._resize(rows, batch, height, shorter)
        return rows.reshape(batch, self.size, self.size, channels).permute(0, 3, 1, 2)

    def _resize(self, pixels: Tensor, batch: Size, length: Size, shorter: Size) -> Tensor:
        """[B, length, N] -> float32 [B, S, N]. Of a strip the middle, `kept` pixels, becomes `resized`, of which the middle is kept."""
        kept: Size = length
        resized: Size = self.size
        if self.shortest is not None:
            kept = torch.sym_min(length, MAX_ASPECT * shorter)
            resized = self.shortest * kept // shorter
        before, first = ((_number(whole) - _number(part)) / 2 for whole, part in ((length, kept), (resized, self.size)))
        kernel = _Kernel(kept, resized, cubic=self.cubic)

        blocks = -(-self.size // BLOCK)
        outputs = torch.round(first) + torch.arange(blocks * BLOCK, dtype=torch.float64).view(blocks, BLOCK)
        window = BLOCK * kept // resized + kernel.taps
        inputs = kernel.starts(outputs[:, :1]) + torch.arange(window, dtype=torch.float64)
        weights = kernel.integers(outputs[:, :, None], inputs[:, None])
        indices = (inputs + torch.round(before)).clamp(min=0).minimum(_number(length) - 1).long()
        windows = pixels.index_select(1, indices.flatten()).reshape(batch, blocks, window, -1).float()
        upper = torch.floor(weights / LOWER)
        sums = LOWER * (upper.float() @ windows).double() + ((weights - LOWER * upper).float() @ windows).double()
        rounded = torch.floor(sums / kernel.one + 0.5).clamp(0, 255).float()
        return rounded.reshape(batch, blocks * BLOCK, -1)[:, : self.size]


class _Kernel:
    """The weights with which `kept` inputs become `resized` outputs: torch's `compute_index_ranges_int16_weights`.

    taps: more than an output has inputs. one: what is 1 among the integers, the largest power of two with which the largest
    weight of all outputs, also of those that nobody needs, has WEIGHT_BITS.
    """

    def __init__(self, kept: Size, resized: Size, *, cubic: bool) -> None:
        self.cubic, self.kept = cubic, _number(kept)
        radius = 2 if cubic else 1
        self.scale = self.kept / _number(resized)
        self.stretch = self.scale.clamp(min=1)
        self.support = radius * self.stretch
        self.taps = 2 * radius * (kept // resized + 1) + 4
        everywhere = torch.arange(resized, dtype=torch.float64)[:, None]
        inputs = self.starts(everywhere) + torch.arange(self.taps, dtype=torch.float64)
        largest = self._weights(everywhere, inputs).max()
        ones = 2.0 ** torch.arange(1, MOST_BITS + 1, dtype=torch.float64)
        self.one = 2.0 ** (largest * ones + 0.5 < 2**WEIGHT_BITS).sum().double()

    def starts(self, outputs: Tensor) -> Tensor:
        """The first input of each output, float64 as all positions."""
        return torch.floor(self.scale * (outputs + 0.5) - self.support + 0.5).clamp(min=0)

    def integers(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """The weights as torch rounds them: float64 whole numbers, half away from zero."""
        weights: Tensor = self._weights(outputs, inputs) * self.one
        whole: Tensor = weights.sign() * torch.floor(weights.abs() + 0.5)
        return whole

    def _weights(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """The weight of each input for each output; for an output they sum to 1."""
        center = self.scale * (outputs + 0.5)
        ends = torch.floor(center + self.support + 0.5).minimum(self.kept)
        x = ((inputs - center + 0.5) / self.stretch).abs()
        values = _cubic(x) if self.cubic else (1 - x).clamp(min=0)
        values = torch.where((inputs >= self.starts(outputs)) & (inputs < ends), values, 0.0)
        return values / values.sum(-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys's kernel with a = -0.5, as PIL, and torch with antialiasing."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _number(size: Size) -> Tensor:
    """A size as a float64 scalar."""
    return torch.ones((), dtype=torch.float64).mul(size)
