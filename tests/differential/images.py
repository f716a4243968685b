"""Reads an OCI image layout as what it means: a file tree and a configuration, with no word of times."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile

TYPES = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink", tarfile.CHRTYPE: "character device", tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
}
XATTR = "SCHILY.xattr."
# What a configuration says to Windows alone.
WINDOWS = {"ArgsEscaped"}


class Broken(Exception):
    """An image that no runtime could use."""


class Layout:
    """A directory with `index.json` and `blobs/`."""

    def __init__(self, directory):
        self.directory = directory

    def blob(self, digest):
        with open(os.path.join(self.directory, "blobs", *digest.split(":")), "rb") as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != digest.split(":")[1]:
            raise Broken(f"blob {digest} is not what it is called")
        return data

    def manifest(self):
        with open(os.path.join(self.directory, "index.json"), encoding="utf-8") as file:
            found = json.load(file)
        while "manifests" in found:
            images = [one for one in found["manifests"] if one.get("platform", {}).get("os") != "unknown"]
            found = json.loads(self.blob(images[-1]["digest"]))
        return found


class Image:
    def __init__(self, directory):
        layout = Layout(directory)
        manifest = layout.manifest()
        self.config = json.loads(layout.blob(manifest["config"]["digest"]))
        self.diff_ids = self.config["rootfs"]["diff_ids"] or []
        if len(self.diff_ids) != len(manifest["layers"] or []):
            raise Broken("the manifest and the configuration have different numbers of layers")
        self.tree = {}
        self.layers = []
        for layer, diff_id in zip(manifest["layers"] or [], self.diff_ids):
            data = decompress(layout.blob(layer["digest"]))
            if "sha256:" + hashlib.sha256(data).hexdigest() != diff_id:
                raise Broken(f"layer {layer['digest']} is not of the diff id {diff_id}")
            apply(self.tree, data)
            self.layers.append(data)


def decompress(data):
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma)):
        if data.startswith(magic):
            return module.decompress(data)
    return data


def apply(tree, data):
    """Lays a layer over a tree; its whiteouts are about what was below it, wherever they stand in it."""
    archive = tarfile.open(fileobj=io.BytesIO(data))
    entries = [(os.path.normpath("/" + entry.name), entry) for entry in archive]
    for path, _ in entries:
        parent, name = os.path.split(path)
        if name == ".wh..wh..opq":
            remove(tree, parent, itself=False)
        elif name.startswith(".wh."):
            remove(tree, os.path.join(parent, name[4:]), itself=True)
    for path, entry in entries:
        if os.path.basename(path).startswith(".wh."):
            continue
        if entry.islnk():
            target = os.path.normpath("/" + entry.linkname)
            if entry.linkname.startswith("/") or target not in tree:
                raise Broken(f"{path} is a hard link to {entry.linkname}, which is absolute or not there")
            remove(tree, path, itself=True)
            tree[path] = tree[target]
            continue
        made = node(archive, entry)
        if made["type"] != "directory" or tree.get(path, made)["type"] != "directory":
            remove(tree, path, itself=True)
        tree[path] = made


def remove(tree, path, itself):
    below = path.rstrip("/") + "/"
    for other in [other for other in tree if other.startswith(below)]:
        del tree[other]
    if itself:
        tree.pop(path, None)


def node(archive, entry):
    kind = TYPES.get(entry.type)
    if kind is None:
        raise Broken(f"{entry.name} is of the unknown type {entry.type}")
    found = {"type": kind, "owner": f"{entry.uid}:{entry.gid}"}
    if kind != "symlink":
        found["mode"] = f"{entry.mode & 0o7777:04o}"
    if kind == "file":
        content = archive.extractfile(entry).read()
        found["size"] = len(content)
        found["content"] = content if len(content) <= 200 else "sha256:" + hashlib.sha256(content).hexdigest()
    elif kind == "symlink":
        found["target"] = entry.linkname
    elif kind.endswith("device"):
        found["device"] = f"{entry.devmajor}:{entry.devminor}"
    for key, value in sorted(entry.pax_headers.items()):
        if key.startswith(XATTR):
            found["attribute " + key[len(XATTR):]] = value.encode("utf-8", "surrogateescape")
    return found


def links(tree):
    """The hard links of each path that has some."""
    groups = {}
    for path, found in tree.items():
        if found["type"] == "file":
            groups.setdefault(id(found), []).append(path)
    return {path: sorted(group) for group in groups.values() if len(group) > 1 for path in group}


def tree_differences(ours, theirs, other="BuildKit"):
    """Lines that say what differs between two images' files; `other` made the second."""
    our_links, their_links = links(ours.tree), links(theirs.tree)
    for path in sorted(ours.tree.keys() | theirs.tree.keys()):
        here, there = ours.tree.get(path), theirs.tree.get(path)
        if here is None or there is None:
            found = here or there
            say = " ".join(str(found.get(key, "")) for key in ("type", "mode", "owner", "target")).strip()
            yield f"{path}: {'not in' if here else 'only in'} {other} ({say})"
            continue
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                yield f"{path}: {key} is {here.get(key)!r}, with {other} {there.get(key)!r}"
        if our_links.get(path) != their_links.get(path):
            yield f"{path}: hard links {our_links.get(path)}, with {other} {their_links.get(path)}"


def config_differences(ours, theirs, other="BuildKit"):
    """Lines that say what differs between two configurations."""
    for key in ("architecture", "os", "variant", "author"):
        if (ours.config.get(key) or None) != (theirs.config.get(key) or None):
            yield f"config {key}: {ours.config.get(key)!r}, with {other} {theirs.config.get(key)!r}"
    here, there = ours.config.get("config", {}), theirs.config.get("config", {})
    for key in sorted((here.keys() | there.keys()) - WINDOWS):
        mine, others = here.get(key) or None, there.get(key) or None
        if key == "WorkingDir":
            mine, others = mine or "/", others or "/"
        if mine != others:
            yield f"config {key}: {json.dumps(mine)}, with {other} {json.dumps(others)}"


def differences(ours, theirs):
    return list(tree_differences(ours, theirs)) + list(config_differences(ours, theirs))


def layer_differences(ours, theirs, other):
    """Lines that say what differs between the layers of two images, to the byte."""
    if len(ours.layers) != len(theirs.layers):
        yield f"{len(ours.layers)} layers, with {other} {len(theirs.layers)}"
    for number, (here, there) in enumerate(zip(ours.layers, theirs.layers), 1):
        if here == there:
            continue
        mine, others = entries(here), entries(there)
        names = [name for name in {**mine, **others} if mine.get(name) != others.get(name)]
        for name in names:
            yield f"layer {number}: {name}: {mine.get(name)}, with {other} {others.get(name)}"
        if not names:
            yield f"layer {number} differs in the order or the form of its entries"


def entries(data):
    """What a layer's tar says of each name."""
    found = {}
    archive = tarfile.open(fileobj=io.BytesIO(data))
    for entry in archive:
        content = hashlib.sha256(archive.extractfile(entry).read()).hexdigest()[:8] if entry.isreg() else ""
        said = (TYPES.get(entry.type, entry.type), f"{entry.mode:04o}", f"{entry.uid}:{entry.gid}", entry.size, entry.mtime,
                entry.linkname, content)
        found[entry.name] = (*said, sorted(entry.pax_headers.items()))
    return found
