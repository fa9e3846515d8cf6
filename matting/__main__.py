"""Cut people out of photos, without a cluster.

    matting photo.jpg -o cutout.png --checkpoint runs/first/best
    matting photos -o cutouts --background white --format jpg --checkpoint runs/first/best
    matting - -o - --only-mask --checkpoint runs/first/best < photo.jpg > mask.png

Bad photos are named and counted, and the others go on. Exit codes: 0 done; 1 a photo failed; 2 nothing could begin
(options, checkpoint, background). Messages go to stderr.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, NoReturn

import pyarrow as pa

from matting.data import images
from matting.data.images import BadImage
from matting.data.photo_tables import PHOTO_SCHEMA, PhotosError, ReadFailure
from matting.data.photos import find_photos, read_photos
from matting.inference.predictor import Predictor
from matting.messages import first_few
from matting.nn.checkpoint import CheckpointError
from matting.results.cutouts import BadBackground, CutoutEncoder, CutoutFormat, check_cutout_options, find_background
from matting.results.output_names import BadKey, output_name
from matting.storage import store
from matting.storage.errors import StorageError
from matting.storage.uri import is_local, join_uri, split_uri, unsigned_uri

STREAM = "-"  # stdin or stdout
_FORMATS: dict[str, CutoutFormat] = {"png": "png", "webp": "webp", "jpg": "jpg", "jpeg": "jpg"}  # by suffix
_FETCHES = 4  # photos in flight at a time
_LONGEST_NAME = 255  # bytes of a part of a path, on local file systems


class UsageError(Exception):
    """Options that contradict each other or the photos. The message says what to do."""


class FoundPhotos(NamedTuple):
    """The photos that the command line names.

    Attributes:
        keys: Key of each photo by its URI: its path below the folder that all inputs share.
        failed: Reason for each input that cannot be found or listed, which begins with its name.
        ignored: Files of the folders that are left out: their names are not those of photos, or a reason is beside it.
        is_single: Whether one photo is named, and no folder.
    """

    keys: dict[str, str]
    failed: list[str]
    ignored: list[str]
    is_single: bool


def main() -> None:
    """Handle the photos of the command line; print an error as one line, and exit with a code."""
    options = parse_options()
    try:
        failed = cut_out_all(options)
    except (BadBackground, CheckpointError, StorageError, UsageError) as error:
        stop(f"error: {error}", 2)
    except KeyboardInterrupt:
        stop("failed: interrupted; the outputs so far are whole", 1)
    if failed:
        sys.exit(1)


def parse_options() -> argparse.Namespace:
    """Return the options. `--help` and options that argparse refuses end the process."""
    parser = argparse.ArgumentParser(prog="matting", description="Cut people out of photos.", allow_abbrev=False)
    parser.add_argument("photos", nargs="+", help="URIs of photos and of folders of photos; - for stdin")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        help="for one photo the image to write, or - for stdout; for several photos, or a folder, the folder of the "
        "outputs, named by the photos' paths below the folder that all inputs share (x/1.jpg -> x/1.jpg.png)",
    )
    parser.add_argument("--checkpoint", required=True, help="URI of a checkpoint folder")
    parser.add_argument("--only-mask", action="store_true", help="write the alpha, a grey PNG, in place of the cutout")
    parser.add_argument(
        "--background", default="", help='colour (white, "#ffffff"), or URI of an image, scaled to cover the cutout'
    )
    parser.add_argument("--crop", type=float, metavar="MARGIN", help="crop cutouts to the person; margin from 0 to 1")
    parser.add_argument("--format", choices=["png", "webp", "jpg"], help="format of cutouts; by default the output's")
    return parser.parse_args()


def cut_out_all(options: argparse.Namespace) -> int:
    """Handle all photos, and print the names of those that fail, and counts of several photos.

    Returns:
        Number of photos or inputs that failed.

    Raises:
        UsageError, BadBackground, CheckpointError, StorageError: Nothing was begun.
    """
    cutout_format = checked_format(options)
    found = find_all(options.photos, options.output)
    outputs = output_uris(found, options, cutout_format)
    # For few photos, start-up takes longer than both passes: the slowest and best way of refining costs little.
    predictor = Predictor.load(options.checkpoint, "mirrored")
    background = find_background(options.background) if options.background else None
    refuse_overwriting(outputs, [*found.keys, *([background.source] if background else [])])
    encoder = CutoutEncoder(cutout_format, background, options.crop)
    for reason in found.failed:
        print(f"error: {reason}", file=sys.stderr)
    done, failed = 0, len(found.failed)
    for uri, data in read_all(list(outputs)):
        try:
            if isinstance(data, ReadFailure):
                raise BadImage(f"cannot be read: {data.reason}")
            photo = images.decode_photo(data)
            if photo.warning:
                print(f"warning: {name_of(uri)}: {photo.warning}", file=sys.stderr)
            (alpha_HW,) = predictor.alphas([photo.image_HWC])
            is_mask = options.only_mask
            write_output(
                outputs[uri],
                images.encode_png(photo.limit(alpha_HW)) if is_mask else encoder.encode(data, photo, alpha_HW),
            )
            done += 1
        except Exception as error:  # any type: one photo must not take the others down
            failed += 1
            is_expected = isinstance(error, BadImage | StorageError)
            reason = " ".join((str(error) if is_expected else f"{type(error).__name__}: {error}").split())
            print(f"error: {name_of(uri)}: {reason}", file=sys.stderr)
    if not found.is_single:
        ignored = f"; {len(found.ignored):,} other files left out: {first_few(found.ignored)}" if found.ignored else ""
        print(f"{done:,} done, {failed:,} failed{ignored}", file=sys.stderr)
    return failed


def name_of(uri: str) -> str:
    """Return the name of a photo in messages."""
    return "stdin" if uri == STREAM else unsigned_uri(uri)


def checked_format(options: argparse.Namespace) -> CutoutFormat:
    """Return the file format of the outputs.

    Raises:
        UsageError: Options contradict each other.
    """
    if not options.output:
        raise UsageError("-o is empty; name a file or a folder")
    by_name = None if is_folder(options.output) else _FORMATS.get(suffix(options.output))
    if options.format and by_name and options.format != by_name:
        raise UsageError(f"--format {options.format} contradicts the name of {options.output}; leave out one of them")
    cutout_format: CutoutFormat = options.format or by_name or "png"
    if options.only_mask:
        if cutout_format != "png":
            raise UsageError(f"masks are PNG, not {cutout_format}; leave out --only-mask, or write *.png")
        if options.background or options.crop is not None:
            raise UsageError("--background and --crop are for cutouts, and --only-mask writes none; leave out one")
    try:
        check_cutout_options(cutout_format, bool(options.background), options.crop)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return cutout_format


def find_all(given: Sequence[str], output: str) -> FoundPhotos:
    """Find the photos that the command line names: files, and all photos in folders and in the folders below them.

    Args:
        given: URIs of photos and folders, or - for stdin.
        output: URI of the output; what is below it is no photo.

    Raises:
        UsageError: Standard input is not the only photo.
    """
    if STREAM in given:
        if len(given) > 1:
            raise UsageError("- reads one photo from stdin; give it alone")
        return FoundPhotos({STREAM: "stdin"}, [], [], True)
    folders: dict[str, str] = {}  # URI of a photo -> folder that was given, or that the given photo is in
    failed, ignored, is_single = list[str](), list[str](), len(given) == 1
    for uri in given:
        try:
            if not uri or "\udc80" <= max(uri) <= "\udcff":  # how Python spells bytes that are not UTF-8
                failed.append(f"{uri!a}: the name is {'not UTF-8' if uri else 'empty'}; rename the photo or correct it")
            elif store.exists(uri):
                folders.setdefault(uri, uri.rpartition("/")[0])
            else:
                listed = find_photos(uri, None if output == STREAM else output)
                is_single = False
                folders |= dict.fromkeys(listed.table["uri"].to_pylist(), uri.rstrip("/"))
                ignored += [join_uri(uri, name) for name in listed.ignored]
                ignored += [f"{join_uri(uri, name)} {reason}" for name, reason in listed.left_out]
        except (PhotosError, StorageError) as error:
            failed.append(f"{unsigned_uri(uri)}: {error}")
    return FoundPhotos(keys_below_shared_folder(folders), failed, ignored, is_single)


def keys_below_shared_folder(folders: dict[str, str]) -> dict[str, str]:
    """Return the key of each photo: its path below the folder that all given folders share.

    Args:
        folders: Folder of each photo, by the photo's URI.

    Returns:
        Keys by URI. Different photos have different keys; a photo that was given twice is there once.
    """
    tops = {tuple(path_parts(folder)) for folder in folders.values()}
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*tops, strict=False))))
    uris: dict[str, str] = {}
    for uri in folders:
        uris.setdefault("/".join(path_parts(unsigned_uri(uri))[shared:]), uri)
    return {uri: key for key, uri in uris.items()}


def path_parts(uri: str) -> list[str]:
    """Return scheme and parts of the path of a URI; a local path is made absolute."""
    scheme, path = split_uri(uri)
    if scheme == "file":
        path = os.path.abspath(path)  # noqa: PTH100 - resolves '..' without following links
    return [scheme, *path.strip("/").split("/")]


def is_folder(output: str) -> bool:
    """Return whether an output names a folder: by a '/' at its end, or since it is one."""
    return output.endswith("/") or (output != STREAM and is_local(output) and Path(split_uri(output)[1]).is_dir())


def suffix(uri: str) -> str:
    """Return the suffix of a file's name in lower case, without its dot; empty if there is none."""
    return Path(uri).suffix.lower().removeprefix(".")


def output_uris(found: FoundPhotos, options: argparse.Namespace, cutout_format: CutoutFormat) -> dict[str, str]:
    """Return the output of each photo by its URI. A photo whose key cannot be a path has none, and is booked as failed.

    Raises:
        UsageError: The output is no place for so many photos, or has another suffix than its format.
    """
    if found.is_single and not is_folder(options.output):
        if options.output != STREAM and suffix(options.output) not in _FORMATS:
            raise UsageError(
                f"{options.output} would hold a {cutout_format.upper()}; name it so (*.{', *.'.join(_FORMATS)}), or "
                "put a '/' behind the name of a folder"
            )
        return dict.fromkeys(found.keys, options.output)
    if options.output == STREAM:
        raise UsageError("-o - is for one photo; name a folder for the outputs")
    if not is_folder(options.output) and suffix(options.output) in _FORMATS:
        raise UsageError(
            f"{options.output} is the name of one image, and there may be several; name a folder for the outputs"
        )
    kind = "alpha" if options.only_mask else "cutout"
    longest = _LONGEST_NAME if is_local(options.output) else None
    outputs: dict[str, str] = {}
    for uri, key in found.keys.items():
        try:
            name = output_name(kind, key, cutout_format, longest).removeprefix(f"{kind}/")
            outputs[uri] = join_uri(options.output, name)
        except BadKey as error:
            found.failed.append(f"{uri}: {error}")
    return outputs


def refuse_overwriting(outputs: dict[str, str], inputs: Sequence[str]) -> None:
    """Check that every output has a place of its own, which is not that of an input.

    Raises:
        UsageError: An output would overwrite an input, or the output of another photo.
    """
    taken = {place(uri): uri for uri in inputs}
    for uri, output in outputs.items():
        if output == STREAM:
            continue
        if other := taken.get(place(output)):
            raise UsageError(
                f"the output of {unsigned_uri(uri)} would overwrite {unsigned_uri(other)}; choose another -o"
            )
        taken[place(output)] = uri


def place(uri: str) -> str:
    """Return what is equal for all names of a place: a local path without links, or else the URI."""
    return os.path.realpath(split_uri(uri)[1]) if uri != STREAM and is_local(uri) else uri


def read_all(uris: Sequence[str]) -> Iterator[tuple[str, bytes | ReadFailure]]:
    """Yield each photo's URI, and its bytes or why they cannot be read, in order."""
    if list(uris) == [STREAM]:
        yield STREAM, sys.stdin.buffer.read()
        return
    columns = {name: pa.nulls(len(uris), PHOTO_SCHEMA.field(name).type) for name in PHOTO_SCHEMA.names}
    rows = pa.table(columns | {"uri": pa.array(uris, pa.string())}, schema=PHOTO_SCHEMA)
    for index, data in read_photos(rows, _FETCHES):
        yield uris[index], data


def write_output(uri: str, data: bytes) -> None:
    """Write an output: a whole file or nothing, or standard output.

    Raises:
        StorageError: The file cannot be written.
        OSError: Standard output is closed or full.
    """
    if uri != STREAM:
        store.write_bytes(uri, data)
        return
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError:
        # Python writes what is left when it ends, and would fail again, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def stop(message: str, code: int) -> NoReturn:
    """Print a message and exit."""
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
