"""What lies among images and is none: files that systems leave behind, and files that belong to images.

Such entries are no samples, and they are counted by their kind. A file of any other name is a sample, and becomes an
error row if it is no image.
"""

SYSTEM = frozenset(
    [
        *("__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found"),
        *("$recycle.bin", "system volume information", "recycler", "__pycache__", "picasa.ini"),
        *("network trash folder", "temporary items", "_gsdata_"),
    ]
)
BESIDE = frozenset(  # of labels, captions, statistics and notes beside images
    [
        *("txt", "json", "jsonl", "csv", "tsv", "xml", "yaml", "yml", "toml", "ini", "cfg", "md"),
        *("rst", "html", "htm", "log", "parquet", "feather", "arrow", "npy", "npz", "mat", "pkl"),
        *("pickle", "h5", "hdf5", "db", "sqlite", "aux", "xmp", "cls", "lock", "md5", "sha256"),
        *("sha1", "py", "ipynb", "sh", "dvc", "gitignore", "zip", "tar", "gz", "tgz", "7z", "rar"),
        *("pdf", "doc", "docx", "xls", "xlsx", "crdownload", "part", "tmp", "bak", "lnk", "url"),
    ]
)


def kind(name: str) -> str:
    """What a hidden entry or one that a system left is counted as; "" for all others.

    >>> kind(".DS_Store"), kind("Thumbs.db"), kind("cat.png")
    ('.DS_Store', 'Thumbs.db', '')
    """
    if name.lower() in SYSTEM:
        return name.strip()
    if not name.startswith("."):
        return ""
    known = (".DS_Store", ".ipynb_checkpoints")
    return name if name in known else "._*" if name.startswith("._") else ".*"


def beside(name: str) -> str:
    """What a file that belongs to images, or tells of them, is counted as; "" for all others.

    >>> beside("0001.json"), beside("0001.JPG"), beside("txt")
    ('*.json', '', '')
    """
    stem, dot, suffix = name.rpartition(".")
    return f"*.{suffix.lower()}" if dot and stem and suffix.lower() in BESIDE else ""
