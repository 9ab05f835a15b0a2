"""Fetches real Apache Mesos releases (libmesos) and makes them loadable.

    fetch.py DIR VERSION...

The Mesos project publishes its native Python 2.7 scheduler driver on the Python
package index. The extension module in it holds all of libmesos (x86_64, new
libstdc++ string ABI) and exports its C++ symbols: master, agent, containerizer,
module and hook managers. It wants libraries that current distributions no longer
ship (OpenSSL 1.0, libcurl 3, Python 2.7, ...). This script takes a release from
the index that pip is configured for, checks its hash, and builds small libraries
("stubs") of the missing names with exactly the versioned symbols that it wants.
Each of their functions returns 0; nothing that the tests use calls them.

Result: DIR/VERSION/lib/libmesos.so and the stubs beside it, and DIR/VERSION/recipe,
a copy of this script. A version that is there appears in one rename, complete.

Needs x86_64 Linux, Python 3.8+ that can import pip, cc and readelf; for releases
before 1.8 also the host's libevent 2.1. The caller sees to it that two of these
do not run in one DIR at the same time.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

PROJECT = "mesos.scheduler"
MEMBER = "mesos/scheduler/_scheduler.so"

# SHA-256 of mesos.scheduler-VERSION.linux-x86_64.tar.gz.
PINNED = {
    "1.4.3": "2f1893a2a0c26ce31208c843c3815ce6821eb83f0808c57287938fe1eccea51c",
    "1.5.2": "973b92c2bde73eba657eb1e2cef8220c53a6ae436ee469384989dfd83dc9b633",
    "1.5.3": "777d62491c1d968644b6fb855967fdbb189c7b93c17ae576ec6e2a6bcb7610fc",
    "1.6.1": "1e7b6787657775610e59d0da2bebc7230f184a9dda53abd4e50d351aa0b2d9c7",
    "1.6.2": "6744b50967fbc1cc634b711c1a73ebc709437c5c6783c3db687cfa7363e8a3d7",
    "1.7.0": "cfaed9d0be936715e9153763d2007b8aa11e8ac092a160dc2769f7fc5301779e",
    "1.7.1": "d1daebbf95f85612e1e64ed2203151abb341a1ec2690dc3822d2e63d8d8bfe92",
    "1.7.2": "3b41a8a5b36990ab9b0483a31b673463ec016c77d5426b9baeec34bb55037693",
    "1.7.3": "14f75c9d6d849d71e8fe476b2e9d6ec2243964ec2a692eb1ffd9c6692051f89b",
    "1.8.0": "4a23876d13b7a278f0e1574d2ff9c8c3b07d845b338c4e4196d42987a96a2e1f",
    "1.8.1": "3a0bfe4151ab0bfd7f94359743342f39fd9e21f72ab9c53151117f491200e2e0",
    "1.9.0": "6829dc7ee6400b7a6d186e966a25d217638b365f5a9ba0b783222a5858f56dcf",
    "1.10.0": "76f111c32a0cd82fc23aff61a85215d4d9ceebb34654d93264d8e64a27483ff5",
    "1.11.0": "1d376f20bca6d05ee8b90c1c123a452b28753497ccc2f1c80ea3ac94c12e8f6e",
}

# Libraries that the host has; all others are replaced by stubs.
HOST = re.compile(
    r"^(ld-linux-x86-64|libc|libm|librt|libdl|libpthread|libgcc_s|libstdc\+\+|libz)\.so\.")
# libevent drives the event loop of releases that do not bundle it, so it must be
# a real one. 2.1 serves programs built for 2.0 well enough.
LIBEVENT = re.compile(r"^libevent(_[a-z]+)?-2\.[01]\.so\.[0-9]+$")
LIBEVENT_HOST = "libevent{}-2.1.so.7"
LIBEVENT_HINT = "Debian: libevent-2.1-7, libevent-openssl-2.1-7, libevent-pthreads-2.1-7"
# Unversioned symbols that no host library has (Python's, svn's, apr's): it does
# not matter which library they are found in, so all go into this one, which every
# other stub pulls in.
COMMON_STUB = "libpython2.7-stub.so"

PARTIAL = "partial-"


def run(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True,
                          env=dict(os.environ, LC_ALL="C")).stdout


# ---------------------------------------------------------------- download

class Links(HTMLParser):
    """The links on a page of a simple repository (PEP 503)."""

    def __init__(self, base):
        super().__init__()
        self.base, self.found = base, []

    def handle_starttag(self, tag, attrs):
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found.append(urljoin(self.base, href))


class Index:
    """The package indexes that pip is configured for.

    pip itself cannot fetch these files: what it takes for their version
    ("1.11.0.linux-x86_64") is none, and they hold no setup.py.
    """

    def __init__(self):
        try:
            # Nothing of this is a promise of pip's; tried with 23.0 to 26.3.
            from pip._internal.commands import create_command
            command = create_command("download")
            # Reads pip's configuration files and environment.
            options, _ = command.parse_args([PROJECT])
            self.urls = [options.index_url] + list(options.extra_index_urls)
            # With pip's proxy, certificate and authentication settings.
            self.context = command.main_context()
            self.context.__enter__()
            self.session = command.get_default_session(options)
        except (ImportError, AttributeError, TypeError) as error:
            sys.exit("pip is missing (Debian: python3-pip) or has changed inside: %s" % error)

    def get(self, url, **headers):
        # "identity": the bytes as stored, nothing unpacked on the way.
        headers["Accept-Encoding"] = "identity"
        try:
            reply = self.session.get(url, stream=True, headers=headers)
            reply.raise_for_status()
        except Exception as error:  # pip's own copy of requests: many classes
            sys.exit("the package index did not answer: %s" % error)
        return reply

    def links(self):
        """version -> link"""
        found = {}
        for url in self.urls:
            page = url.rstrip("/") + "/" + re.sub(r"[-_.]+", "-", PROJECT) + "/"
            reply = self.get(page, Accept="text/html")
            parser = Links(reply.url)
            parser.feed(reply.text)
            for link in parser.found:
                match = re.search(
                    r"/%s-([0-9.]+)\.linux-x86_64\.tar\.gz(?:#|$)" % re.escape(PROJECT), link)
                if match:
                    found.setdefault(match.group(1), link)
        return found

    def download(self, version, target):
        links = self.links()
        if version not in links:
            sys.exit("the package index has no %s %s" % (PROJECT, version))
        digest = hashlib.sha256()
        with self.get(links[version].split("#", 1)[0]) as reply, open(target, "wb") as out:
            for block in reply.iter_content(1 << 20):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != PINNED[version]:
            sys.exit("%s %s: SHA-256 %s is not the pinned one"
                     % (PROJECT, version, digest.hexdigest()))


def unpack(tarball, target):
    with tarfile.open(tarball) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(MEMBER):
                with tar.extractfile(member) as source, open(target, "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                return
    sys.exit("%s: no %s inside" % (tarball, MEMBER))


# ---------------------------------------------------------------- stubs

def needed(library):
    return re.findall(r"\(NEEDED\).*\[(.*?)\]", run("readelf", "-Wd", str(library)))


def symbols(library):
    """(bind, section index, name, version or None) of each dynamic symbol"""
    for line in run("readelf", "-W", "--dyn-syms", str(library)).splitlines():
        #  Num: Value Size Type Bind Vis Ndx Name[@Version (n)]
        field = line.split()
        if len(field) >= 8 and field[0].rstrip(":").isdigit():
            name, _, version = field[7].partition("@")
            yield field[4], field[6], name, version.lstrip("@") or None


def undefined(library):
    """[(symbol, version or None)] of all strong undefined symbols"""
    return [(name, version) for bind, index, name, version in symbols(library)
            if index == "UND" and bind == "GLOBAL"]


def defined(library):
    return {name for _, index, name, _ in symbols(library) if index != "UND"}


def version_files(library):
    """symbol version -> set of sonames it is expected from (.gnu.version_r)"""
    files, current = {}, None
    for line in run("readelf", "-WV", str(library)).splitlines():
        match = re.search(r"Version: \d+\s+File: (\S+)", line)
        if match:
            current = match.group(1)
        match = re.search(r"Name: (\S+)\s+Flags:", line)
        if match and current:
            files.setdefault(match.group(1), set()).add(current)
    return files


def host_path(soname):
    """path of the host's library, None if there is none"""
    code = ("import ctypes, sys; ctypes.CDLL(sys.argv[1]);"
            "print(*{l.split()[-1] for l in open('/proc/self/maps')"
            " if l.rstrip().split('/')[-1].startswith(sys.argv[1])})")
    # In a process of its own: a library cannot be unloaded for sure.
    done = subprocess.run([sys.executable, "-c", code, soname], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True)
    paths = done.stdout.split()
    return Path(paths[0]) if done.returncode == 0 and paths else None


def make_stub(lib_dir, soname, by_version, links=()):
    """by_version: {symbol version or None: [names]}; links: libraries to pull in"""
    source = [".text"]
    for names in by_version.values():
        for name in names:
            source += [".globl %s" % name, ".type %s, @function" % name, "%s:" % name]
    # One body serves all: return 0. Padded, so that a symbol that is used as data
    # (PyExc_Exception, _Py_NoneStruct) points at mapped memory.
    source += ["xorl %eax, %eax", "ret", ".fill 256, 1, 0",
               '.section .note.GNU-stack,"",@progbits', ""]
    script = ["%s { global: %s };" % (version, " ".join(name + ";" for name in names))
              for version, names in sorted(by_version.items(), key=lambda item: item[0] or "")
              if version]
    if script:
        # All are versioned: the last node hides the rest.
        script[-1] = script[-1][:-2] + " local: *; };"
    with tempfile.TemporaryDirectory() as tmp:
        source_file, script_file = Path(tmp, "stub.S"), Path(tmp, "stub.map")
        source_file.write_text("\n".join(source))
        script_file.write_text("\n".join(script) + "\n")
        argv = ["cc", "-shared", "-nostdlib", "-Wl,-soname," + soname, "-Wl,-rpath,$ORIGIN",
                "-Wl,-z,noexecstack", "-o", str(lib_dir / soname), str(source_file)]
        if script:
            argv.append("-Wl,--version-script=%s" % script_file)
        if links:
            argv.append("-Wl,--no-as-needed")
            argv += [str(path) for path in links]
        run(*argv)


def make_stubs(library):
    lib_dir = library.parent
    stubs, events = {}, []
    for soname in needed(library):
        event = LIBEVENT.match(soname)
        if event:
            path = host_path(LIBEVENT_HOST.format(event.group(1) or ""))
            if path is None:
                sys.exit("this release needs libevent (%s)" % LIBEVENT_HINT)
            events.append((soname, path))
        elif not HOST.match(soname):
            stubs[soname] = {}

    files, unversioned = version_files(library), []
    for name, version in undefined(library):
        if version is None:
            unversioned.append(name)
        # Two libraries may use one version name (OPENSSL_1.0.0): then both get
        # the symbol, which does no harm.
        for soname in files.get(version, ()):
            if soname in stubs:
                stubs[soname].setdefault(version, []).append(name)

    host = [host_path(soname) for soname in needed(library) + ["libdl.so.2"] if HOST.match(soname)]
    provided = set().union(*(defined(path) for path in host + [path for _, path in events]))
    common = lib_dir / COMMON_STUB
    make_stub(lib_dir, COMMON_STUB, {None: [n for n in unversioned if n not in provided]})
    for soname, by_version in stubs.items():
        make_stub(lib_dir, soname, by_version, [common])
    for soname, path in events:
        # An empty library of the old name that pulls in the host's.
        make_stub(lib_dir, soname, {}, [path])


# ---------------------------------------------------------------- main

def fetch(base, version, recipe):
    if version not in PINNED:
        sys.exit("no hash is known for Mesos %s; there are: %s" % (version, ", ".join(PINNED)))
    final = base / version
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=base) as tmp:
        made = Path(tmp, "made")
        lib_dir = made / "lib"
        lib_dir.mkdir(parents=True)
        library = lib_dir / "libmesos.so"
        earlier = final / "lib" / "libmesos.so"
        if earlier.exists():
            os.link(earlier, library)
        else:
            print("fetching Mesos", version, file=sys.stderr)
            tarball = Path(tmp, "download")
            Index().download(version, tarball)
            unpack(tarball, library)
        make_stubs(library)
        (made / "recipe").write_text(recipe)
        if final.exists():
            # Programs that have it open go on with what they have.
            final.rename(Path(tmp, "old"))
        made.rename(final)


def main():
    base, versions = Path(sys.argv[1]), sys.argv[2:]
    recipe = Path(__file__).read_text()
    for tool, package in ("cc", "gcc"), ("readelf", "binutils"):
        if shutil.which(tool) is None:
            sys.exit("%s is missing (Debian: %s)" % (tool, package))
    # Of earlier runs that were killed.
    for partial in base.glob(PARTIAL + "*"):
        shutil.rmtree(partial)
    for version in versions:
        fetch(base, version, recipe)


if __name__ == "__main__":
    main()
