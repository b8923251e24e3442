"""A recipe for `mimkit pretrain photos/`: chosen by the images and the machine, with a sentence for every choice.

Pure arithmetic on six numbers, so that what it does is easy to read and to test. MAE's own settings were found on 1.28
million images (He et al. 2022, table 8); what is changed here for fewer images keeps the rules behind them: enough
passes, a batch that fits, a warm-up of a twentieth of the run, the learning rate by the batch size.
"""

from mimkit.errors import DataError, counted

FEW = 10_000  # images below which published weights are the better start, as the threads on small sets report
MANY = 1_000_000  # images from which ViT-L pays (MAE, table 3: +2.3 points over ViT-B on ImageNet-1K)
LARGE_GB, BASE_GB = 24, 8  # memory of the GPU that AdamW's state and a usable micro-batch take
SEEN_ON_CPU = 60_000  # images that a run without a GPU sees in all: ten minutes of mae_tiny on two cores
BATCH = {"mae_tiny": 64}  # images a step where the set is large enough; MAE's 4096 in all other recipes


def choose(
    images: int, height: int, width: int, channels: int, memory_gb: float, cuda: bool
) -> tuple[str, list[str], list[str]]:
    """The recipe to pre-train with: (its name, overrides, reasons in plain sentences).

    images: how many there are. height, width: of a typical one, in pixels. channels: of an image. memory_gb: of the
    GPU where `cuda`, else of the machine. Raises DataError where there is nothing to train on.
    """
    if min(images, height, width, channels) < 1:
        raise DataError(
            f"There is nothing to train on: {counted(images, 'image')} of {width} x {height} with "
            f"{counted(channels, 'channel')}."
        )
    recipe, why_recipe = _model(images, memory_gb, cuda)
    sizes, why_sizes = _crop(recipe, min(height, width))
    lengths, why_lengths = _length(recipe, images)
    notes = [*_start(images, channels, cuda), *_reading(height, width), *_colour(channels)]
    return recipe, [*sizes, *lengths], [why_recipe, why_sizes, *why_lengths, *notes]


def _model(images: int, memory_gb: float, cuda: bool) -> tuple[str, str]:
    """The recipe by machine and number of images."""
    if not cuda:
        return "mae_tiny", (
            "There is no GPU, so the smallest recipe (mae_tiny) is taken; the next one (mae_small) would take days."
        )
    if images >= MANY and memory_gb >= LARGE_GB:
        return (
            "mae_large",
            f"{_count(images)} are enough to feed ViT-L (mae_large), and {memory_gb:.0f} GB hold it.",
        )
    if images >= FEW and memory_gb >= BASE_GB:
        return "mae_base", f"{_count(images)} suit ViT-B (mae_base), the paper's smallest model."
    if images >= FEW:
        return (
            "mae_small",
            f"The GPU has {memory_gb:.0f} GB, so ViT-S (mae_small) is taken in place of ViT-B.",
        )
    return "mae_small", f"{_count(images)} are few for a large model, so ViT-S (mae_small) is taken."


def _crop(recipe: str, short: int) -> tuple[list[str], str]:
    """Crop and patch by the shorter side of a typical image: some 50 to 200 patches, none made of blown-up pixels."""
    if recipe == "mae_tiny" and short >= 64:
        return (
            [],
            f"The images' shorter side is {short} pixels; crops are reduced to 64 with patches of 8, for speed.",
        )
    if short >= 224:
        return (
            [],
            f"The images' shorter side is {short} pixels; crops of 224 with the recipe's patches are taken.",
        )
    patch = 4 if short < 64 else 8 if short < 128 else 16
    size = max(16, short // patch * patch)
    scaled = ", and smaller images are scaled up" if short < size else ""
    return (
        [f"data.size={size}", f"encoder.patch={patch}"],
        f"The images' shorter side is only {short} pixels, so crops of {size} with patches of {patch} are taken"
        f"{scaled}.",
    )


def _length(recipe: str, images: int) -> tuple[list[str], list[str]]:
    """Batch size, epochs and warm-up."""
    if recipe == "mae_tiny":
        epochs = min(800, max(2, SEEN_ON_CPU // images))
        why = f"{epochs} epochs keep it to minutes; raise train.epochs for better features."
    elif images < FEW:
        epochs, why = 1600, "1600 epochs, twice the paper's 800, because each one is short."
    else:
        epochs, why = 800, "800 epochs, as in the paper."
    overrides = [f"train.epochs={epochs}", f"schedule.warmup_epochs={max(1, epochs // 20)}"]
    largest = BATCH.get(recipe, 4096)
    batch = min(largest, 1 << (max(1, images // 2).bit_length() - 1))  # a power of two
    if batch == largest:
        return overrides, [why]
    why_batch = f"Steps of {batch}, so that {images:,} images make at least two an epoch"
    fit = f"{why_batch if images > 1 else 'Steps of a single image'}; the learning rate follows."
    return [*overrides, f"train.batch_size={batch}"], [why, fit]


def _start(images: int, channels: int, cuda: bool) -> list[str]:
    """What to know about published weights when the set is small."""
    if images >= FEW or channels != 3:
        return []
    where = "" if cuda else ", on a machine with a GPU"
    return [
        f"With fewer than {FEW:,} images, published weights are usually the better start{where}: try "
        "mae_base with encoder.init=timm:vit_base_patch16_224.mae, and compare the two with `mimkit probe`."
    ]


def _reading(height: int, width: int) -> list[str]:
    if min(height, width) <= 1000:
        return []
    return [
        f"Images of {width} x {height} take long to decode; `mimkit data prepare PATH OUT --short-side 512` makes "
        "a small copy once."
    ]


def _colour(channels: int) -> list[str]:
    if channels == 3:
        return []
    return [
        f"The images have {counted(channels, 'channel')}; mean and deviation are measured on them, as ImageNet's "
        "are for RGB."
    ]


def _count(images: int) -> str:
    return counted(images, "image", ",")
