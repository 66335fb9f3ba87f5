# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Upload a model's folder to the Hub, with a model card and its results.

    python -m run_scripts.push_to_hub --model outputs/emoji_two_styles --repo_id me/emoji --license cc-by-sa-4.0 \\
        --results outputs/emoji_two_styles/results.json

What is uploaded is the model, its processor and code, the card, results.json, licences and attributions. What else
lies in the folder stays behind and is listed. A card (README.md) that somebody wrote is kept; results take the place
of those in it. A model of both towers becomes a SparseEncoder of sentence-transformers as well.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from run_scripts.arguments import run_command


logger = logging.getLogger(__name__)


@dataclass
class PushArguments:
    model: str = field(metadata={"help": "Folder with the model, or adapters on one, and its processor."})
    repo_id: str = field(metadata={"help": "Name of the repository on the Hub: owner/name."})
    private: bool = field(default=False, metadata={"help": "Make a new repository, and a new Space, private."})
    license: str | None = field(
        default=None, metadata={"help": "Identifier of the weights' licence on the Hub, for a new card."}
    )
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Names on the Hub of the training data, for a new card."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Name on the Hub of the checkpoint that was trained further, for a new card."}
    )
    code_names: str | None = field(
        default=None, metadata={"help": "codes.parquet of run_visualization, whose names of codes go along."}
    )
    endpoint: bool = field(default=False, metadata={"help": "Add handler.py, which Inference Endpoints run."})
    space: str | None = field(
        default=None, metadata={"help": "Name of a Space on the Hub, owner/name, that shows the model in a browser."}
    )
    results: list[str] = field(
        default_factory=list, metadata={"help": "JSON files of run_evaluation or run_demo, for the card."}
    )


def main(arguments: PushArguments) -> None:
    """Write the card where there is none, put the results into it, and upload.

    Raises:
        ValueError: the folder holds no model, or none for an endpoint or a Space; a fact is given for a card that is
            there; a file holds no results, or no names of this model's codes; or the folder holds adapters and
            nothing says which model on the Hub they belong to.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses. The folder stays as it is, and the upload can be
            tried again.
    """
    from modeling_fdt.model_card import write_model_card
    from run_scripts.hub.card import add_results, is_written, name_base_model
    from run_scripts.hub.code_names import write_code_names
    from run_scripts.hub.endpoint import write_endpoint
    from run_scripts.hub.files import push_folder
    from run_scripts.hub.space import push_space, write_space
    from run_scripts.hub.sparse_encoder import is_two_tower_fdt, write_sparse_encoder

    facts = {name: getattr(arguments, name) for name in ("license", "datasets", "base_model")}
    given = [name for name, value in facts.items() if value]
    is_sparse_encoder = is_two_tower_fdt(arguments.model)
    if arguments.code_names is not None:
        write_code_names(arguments.model, arguments.code_names)
    if arguments.endpoint:
        write_endpoint(arguments.model)
    if arguments.space is not None:
        space_folder = Path(arguments.model) / "space"
        space_files = write_space(arguments.model, arguments.repo_id, space_folder)
    if not is_written(arguments.model):
        name_base_model(arguments.model, arguments.base_model)
        tags = ["sentence-transformers"] if is_sparse_encoder else []
        write_model_card(arguments.model, title=arguments.repo_id, repo_id=arguments.repo_id, tags=tags, **facts)
    elif given:
        raise ValueError(f"{given} are for new cards; {arguments.model} has README.md: edit it, or delete it")
    if arguments.results:
        add_results(arguments.model, arguments.results)
    if is_sparse_encoder:
        write_sparse_encoder(arguments.model)
    push_folder(arguments.model, arguments.repo_id, private=arguments.private or None)
    logger.info("uploaded %s to %s", arguments.model, arguments.repo_id)
    if arguments.space is not None:
        push_space(space_folder, space_files, arguments.space, private=arguments.private or None)
        logger.info("uploaded the Space %s, which is also in %s", arguments.space, space_folder)


if __name__ == "__main__":
    run_command(main, PushArguments)
