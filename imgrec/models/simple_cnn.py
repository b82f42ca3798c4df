"""A plain stack of convolutions, poolings and one dense layer: the network of textbooks and of the Keras examples."""

from itertools import pairwise

from torch import nn

from imgrec.config.named_values import Norm, Padding
from imgrec.errors import ConfigError


class SimpleCNN(nn.Sequential):
    """Float [B, channels, image_size, image_size] -> logits [B, num_classes].

    widths: channels of each stage. A stage is one convolution (norm, ReLU) per entry of `padding` ("valid" or "same"),
        then a 2x2 max pooling and dropout: `padding: [same, valid]` is "conv same, conv, pool, dropout".
    kernel: side of every convolution in pixels. dense: values of the hidden dense layer; 0 leaves it out.
    stage_dropout, dense_dropout: shares set to zero while training, after each pooling and after the dense layer.

    Raises ConfigError for an image that is too small for the stages, with the size that is enough.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        image_size: int,
        widths: list[int],
        padding: list[Padding],
        kernel: int,
        norm: Norm,
        dense: int,
        stage_dropout: float,
        dense_dropout: float,
    ) -> None:
        super().__init__()
        if not widths or not padding:
            raise ConfigError(
                f"model.widths={widths} model.padding={padding}: each needs at least one entry. "
                "Set model.widths=[32,64,128] model.padding=[same]."
            )
        lost = (kernel - 1) * padding.count("valid")  # pixels per stage
        shrink = 2 ** len(widths)  # by which the poolings divide the side
        size = (image_size - lost * (shrink - 1)) // shrink
        if size < 1:
            raise ConfigError(
                f"model simple_cnn does not accept {image_size}x{image_size} images: its {len(widths)} stages need larger ones. "
                f"Set data.image_size={shrink + lost * (shrink - 1)} or more, or fewer model.widths."
            )
        layers: list[nn.Module] = []
        for inputs, width in pairwise([channels, *widths]):
            for i, entry in enumerate(padding):
                layers.append(nn.Conv2d(inputs if i == 0 else width, width, kernel, padding=entry, bias=norm == "none"))
                if norm == "batch":
                    layers.append(nn.BatchNorm2d(width))
                if i < len(padding) - 1:
                    layers.append(nn.ReLU(inplace=True))
            # ReLU behind the pooling gives the same bits, of a quarter of the values: 12% of a step of experiment=mnist_cnn.
            layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True), nn.Dropout(stage_dropout)]
        self.features = nn.Sequential(*layers)
        flat = widths[-1] * size**2
        self.classifier = nn.Sequential(nn.Flatten())
        if dense:
            self.classifier.extend([nn.Linear(flat, dense), nn.ReLU(inplace=True), nn.Dropout(dense_dropout)])
        self.classifier.append(nn.Linear(dense or flat, num_classes))
        he_init(self)


def he_init(net: nn.Module) -> None:
    """He et al. 2015 (arXiv 1502.01852), over inputs: normal weights that keep the variance through ReLU; biases 0."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
