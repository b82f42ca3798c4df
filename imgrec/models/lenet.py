"""LeNet-5: LeCun et al. 1998, "Gradient-based learning applied to document recognition"."""

from torch import nn

from imgrec.config.named_values import Activation, Pool
from imgrec.errors import ConfigError
from imgrec.models.simple_cnn import he_init


class LeNet(nn.Sequential):
    """Float [B, channels, image_size, image_size] -> logits [B, num_classes].

    The paper's layers of 6, 16, 120 and 84 values; its maps are fully connected here, and the last layer is linear
    instead of radial. The first 5x5 convolution keeps the size, so 28 pixels give the paper's 32-pixel network.
    "tanh" and "average" are closest to the paper; "relu" and "max" train faster. Raises ConfigError under 12 pixels.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        image_size: int,
        activation: Activation,
        pool: Pool,
    ) -> None:
        super().__init__()
        size = (image_size // 2 - 4) // 2
        if size < 1:
            raise ConfigError(f"model lenet does not accept {image_size}x{image_size} images. Set data.image_size=12 or more.")
        act = nn.ReLU if activation == "relu" else nn.Tanh
        down = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2),
            act(),
            down(2),
            nn.Conv2d(6, 16, 5),
            act(),
            down(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * size**2, 120),
            act(),
            nn.Linear(120, 84),
            act(),
            nn.Linear(84, num_classes),
        )
        he_init(self)
