"""`mimkit analyze`: what did these models learn?"""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.compare import OVERRIDE
from mimkit.cli.text import progress


def run(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... KEY.PATH=VALUE",
            help="Run folders, published files, timm:NAME, hf:FOLDER or random:NAME; overrides hold for all.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="PATH", help="Images: folder, glob, list, table, shards or stack."),
    ],
    images: Annotated[int, typer.Option("--images", min=1, help="How many of them are read.")] = 256,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="A new folder, or that of an earlier analysis."),
    ] = Path("analysis"),
    labels: Annotated[
        bool, typer.Option("--labels", help="The images lie in class folders: probe every layer too.")
    ] = False,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--runs", metavar="RUN", help="One more run whose training curves are compared; repeat it."
        ),
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            "--only",
            metavar="A,B,...",
            help="Of attention, kernels, cka, spectrum, probes, maps, features, gallery, training.",
        ),
    ] = "",
    cka_examples: Annotated[
        str | None,
        typer.Option(
            "--cka-examples",
            metavar="WHAT",
            help="What an example of CKA is: images (default; all tokens in a row), tokens or pooled.",
        ),
    ] = None,
    cka_estimator: Annotated[
        str | None,
        typer.Option("--cka-estimator", metavar="WHICH", help="Of CKA: unbiased (default) or biased."),
    ] = None,
    cka_block: Annotated[
        int | None,
        typer.Option(
            "--cka-block", metavar="N", help="Images that CKA takes at once (default 256); 0 for all of them."
        ),
    ] = None,
) -> None:
    """Look inside models and say what they learned.

    Attention distance, entropy and head diversity, kernels, CKA, effective rank, features as colours, on the same
    images for all models; one page, the numbers as tables, the figures as files.

    \b
    mimkit analyze runs/first --data photos/
    mimkit analyze runs/first timm:vit_base_patch16_224 random:vit_base --data photos/ --out side-by-side
    mimkit analyze runs/first runs/second --data labelled/ --labels --images 512
    mimkit analyze mae_pretrain_vit_base.pth --data photos/ --only attention,cka
    mimkit analyze runs/first --data photos/ --only cka --cka-examples pooled --cka-block 0
    """
    from mimkit import api

    models = [word for word in words if not OVERRIDE.match(word)]
    overrides = [word for word in words if OVERRIDE.match(word)]
    names = [name.strip() for name in only.split(",") if name.strip()]
    with progress("analysing") as report:
        found = api.analyze(
            models,
            data,
            overrides,
            out,
            images,
            labels,
            runs or [],
            names,
            progress=report,
            cka_examples=cka_examples,
            cka_estimator=cka_estimator,
            cka_block=cka_block,
        )
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"Wrote {found.report}")
