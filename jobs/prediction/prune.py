"""Removal of the outputs of photos that have left the collection (--prune).

keys of photos that are in the ledger and no longer in the collection -> check_prune -> remove_outputs
"""

import pyarrow as pa
import pyarrow.compute as pc

from jobs.common.config import ConfigError
from matting.messages import first_few
from matting.results import outputs


def check_prune(pruned: pa.ChunkedArray, known: int, max_pruned: float) -> None:
    """Check that --prune removes no more than --max-pruned allows.

    Args:
        pruned: Keys of the photos whose outputs would be removed.
        known: Number of photos in the ledger.
        max_pruned: Fraction of them that may be removed.

    Raises:
        ConfigError: It would remove more. Nothing has been removed.
    """
    if len(pruned) > max_pruned * known:
        raise ConfigError(
            f"--prune would remove the outputs of {len(pruned):,} of the ledger's {known:,} photos, more than "
            f"--max-pruned {max_pruned:g} allows; nothing was removed. If --images is the whole collection, give "
            f"a larger --max-pruned. Missing, for example: {first_few(pruned.to_pylist())}."
        )


def remove_outputs(output: str, known: pa.Table, keys: pa.ChunkedArray) -> None:
    """Remove the outputs of these photos, as the ledger lists them."""
    if len(keys):
        rows = known.filter(pc.is_in(known["key"], keys.combine_chunks()))
        outputs.remove(output, dict(zip(rows["key"].to_pylist(), rows["outputs"].to_pylist(), strict=True)))
