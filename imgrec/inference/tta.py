"""How images are read where the logits of several views are averaged (test-time augmentation)."""

from copy import copy

from imgrec.config.annotations import check_type
from imgrec.config.schema import Views
from imgrec.data.decode import Preprocessing
from imgrec.data.folder import ImageFiles
from imgrec.data.image_set import ImageSet
from imgrec.data.torch_dataset import DatasetImages
from imgrec.errors import ConfigError
from imgrec.inference.checkpoint import Checkpoint


def preprocessing_for(checkpoint: Checkpoint, tta: Views | None) -> Preprocessing:
    """The checkpoint's preprocessing; for crops that of the whole square from which they are cut. ConfigError where tta has no use."""
    check_type("tta", tta, Views | None)
    preprocessing = checkpoint.preprocessing
    if tta in ("flip", "ten_crops") and checkpoint.run.model.get("flip_in_evaluation"):
        raise ConfigError(
            f"tta={tta}: this network averages an image and its mirror image by itself (model.flip_in_evaluation=true). Leave tta out."
        )
    if tta is None or tta == "flip":
        return preprocessing
    side, share = preprocessing["image_size"], preprocessing["crop_share"]
    if (whole := round(side / share)) == side:
        raise ConfigError(f"tta={tta}: with the run's data.crop_share={share:g} all crops are the whole image. Set tta=flip.")
    larger = preprocessing.copy()
    larger["image_size"], larger["crop_share"] = whole, 1.0
    return larger


def read_as(images: ImageSet, preprocessing: Preprocessing) -> ImageSet:
    """The same images with this preprocessing; those in memory are resized on the device."""
    if not isinstance(images, ImageFiles | DatasetImages):
        return images
    other = copy(images)
    other.preprocessing = preprocessing
    return other


def mirror_note(checkpoint: Checkpoint, tta: Views | None) -> str | None:
    """A sentence where mirror images are averaged that the network has never seen."""
    if tta in (None, "crops") or checkpoint.run.augment.get("flip") != 0:
        return None
    return (
        f"tta={tta}: the run was trained without mirror images (augment.flip=0), which may make it worse: compare with tta=null."
    )
