"""Base images, from container registries or made of Debian's packages from the machine's apt mirror."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from base_images import image
from base_images.adapters import ownership, programs, registry
from base_images.adapters.container import ContainerSpec
from base_images.adapters.download import cache_directory, locked
from base_images.adapters.engine import Engine, Image
from base_images.adapters.http_session import host_certificates
from base_images.build import emulated, mirrors, packages, wheels
from base_images.build.inputs import BaseImage, Bases, Origin
from base_images.errors import EngineError, ImageNotFoundError, RegistryError, SourceError
from base_images.labels import RESOURCE
from base_images.progress import Listener, Progress, pull_progress
from base_images.roots import UNSTABLE, Packages, Root, Wheels
from base_images.variants import Platform, Variant, gigabytes

REACH_SECONDS = 15
"""Time-out after which a registry or a git host counts as unreachable."""

PACKAGES_REPOSITORY = "llama-cpp-packages-origin"
"""Repository of the bases that are made here; every image in it may be removed."""

CERTIFICATES = "/usr/local/share/host-ca.pem"
"""The host's certificate authorities in the bases of build stages. The runtime base never has them."""

_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
_WHEELS = "wheels"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def resolve_bases(
    engine: Engine,
    variant: Variant,
    references: Mapping[str, str],
    *,
    origin: Origin,
    listener: Listener,
    slim: bool = False,
    toolkit: str = "",
    asked: str = "",
    platform: Platform | None = None,
) -> Bases:
    """Pulls or makes the base images of a build and returns them.

    Args:
        engine: pulls or imports the images.
        variant: the variant to build, which determines the packages and the size of the toolkit.
        references: the recipe's references for the roles `web`, `build` and `runtime`.
        origin: AUTO tries the registries, then images that were pulled before, then packages.
        listener: receives the progress.
        slim: whether the runtime libraries of the toolkit come from the build stage and not from the runtime base.
        toolkit: the version of the toolkit in this build, which packages follow where they can.
        asked: that version if it was asked for, so that packages must have it.
        platform: what the bases are for, if not the engine's own platform: only packages make bases for another.

    Raises:
        ImageNotFoundError: a registry does not have an image.
        SourceError: an image is not available from the requested origin.
        EngineError: the engine's disk is too small for the toolkit.
    """
    notices: list[str] = []
    digests = None
    if origin is not Origin.PACKAGES:
        try:
            digests = _pull(engine, variant, references, listener)
        except SourceError as error:
            if origin is Origin.REGISTRIES:
                raise
            digests = _pulled_before(engine, references)
            debian = packages.of_version(variant, toolkit)
            if digests is None and debian is None:
                raise SourceError(f"{error} {_no_packages(variant)}", detail=error.detail) from error
            instead = "images that were pulled before" if digests or not debian else _what(debian.build)
            notices.append(f"{error} This build uses {instead} instead; it cannot be released.")
    arguments: Mapping[str, str] = {}
    if digests is None:
        debian = packages.of_version(variant, toolkit)
        if debian is None:
            raise SourceError(f"{_no_packages(variant)} Use --origin registries.")
        try:
            packages.require_version(variant, asked, debian.release)
            made = _make(engine, variant, debian.slim() if slim else debian, platform, listener)
            origin, bases = Origin.PACKAGES, made
            arguments = {**debian.arguments, **_versions(engine, bases["build"].reference, debian)}
            packages.require_version(variant, asked, arguments.get(variant.version_argument, ""))
        except SourceError as error:
            raise SourceError(" ".join((*notices, str(error))), detail=error.detail) from error
    else:
        origin, bases = Origin.REGISTRIES, _by_digest(references, digests)
    return Bases(
        origin=origin,
        **bases,
        glibc=_glibc(engine, bases["runtime"].reference),
        arguments=arguments,
        notices=tuple(notices),
        snapshot=snapshot.time if origin is Origin.PACKAGES and (snapshot := mirrors.snapshot()) else "",
    )


def ask(reference: str) -> str:
    """Returns the digest that a reference has: its own, or that of its tag at the registry now.

    Raises:
        ImageNotFoundError: the registry does not have the image.
        SourceError: the registry does not answer, or denies access.
    """
    name, _, digest = reference.partition("@")
    if digest:
        return digest
    tag = name.rpartition("/")[2].partition(":")[2] or "latest"
    try:
        found = registry.open_repository(_repository(reference)).digest(tag)
    except RegistryError as error:
        raise SourceError(f"The base image {reference} cannot be looked up ({str(error).rstrip('.')}).") from error
    if found is None:
        raise ImageNotFoundError(f"No registry has the image {reference!r}: check its name and tag in the recipe.")
    return found


def ask_bases(references: Mapping[str, str]) -> Bases:
    """Returns the base images that the registries currently have, without an engine and without pulling.

    Their glibc version stays empty: only a program in the runtime base can tell it. `references` are the recipe's for
    the roles `web`, `build` and `runtime`.

    Raises:
        ImageNotFoundError: a registry does not have an image.
        SourceError: a registry does not answer, or denies access.
    """
    digests = {reference: ask(reference) for reference in dict.fromkeys(references.values())}
    bases = _by_digest(references, digests)
    return Bases(origin=Origin.REGISTRIES, **bases, glibc="", arguments={}, notices=(), snapshot="")


def _by_digest(references: Mapping[str, str], digests: Mapping[str, str]) -> dict[str, BaseImage]:
    """Returns the base of each role, given the digest of each reference."""
    return {
        role: BaseImage(reference=_pinned(name, digests[name]), name=name.partition("@")[0], digest=digests[name])
        for role, name in references.items()
    }


def _glibc(engine: Engine, reference: str) -> str:
    result = engine.probe(ContainerSpec(image=reference, entrypoint=("getconf", "GNU_LIBC_VERSION")))
    return glibc_version(result.output, reference)


def glibc_version(output: str, reference: str) -> str:
    """Returns the version in the output of `getconf GNU_LIBC_VERSION` in a runtime base, such as `glibc 2.41`.

    Raises:
        SourceError: the base has another C library, or none.
    """
    version = image.glibc_version(output)
    if not version:
        raise SourceError(
            f"The runtime base {reference} does not say its glibc version ({output.strip()!r}): "
            "llama-server needs a base with glibc."
        )
    return version


def require_disk(engine: Engine, variant: Variant, size: int) -> None:
    """Checks that the engine's disk has room for a variant's bases, where its free space is known.

    Raises:
        EngineError: the disk is too full.
    """
    free = engine.free_disk()
    if free is not None and free < size:
        raise EngineError(
            f"The base images of {variant.name} take about {gigabytes(size)} and the engine's disk has "
            f"{gigabytes(free)} free: make room (`docker system df` says what takes it) or build on another machine."
        )


# Registries.


def _pull(engine: Engine, variant: Variant, references: Mapping[str, str], listener: Listener) -> dict[str, str]:
    """Pulls each image and returns the digest of each reference."""
    digests: dict[str, str] = {}
    for reference in dict.fromkeys(references.values()):
        if "@" in reference and engine.has_image(reference):
            digests[reference] = reference.partition("@")[2]
            continue
        try:
            # Ask for the digest first: a pull has no time-out, and a firewall that drops packets would block it.
            pinned = _pinned(reference, engine.ask_registry(reference, timeout=REACH_SECONDS))
        except EngineError as error:
            raise _unavailable(variant, reference, error) from error
        if reference != references["web"] and not engine.has_image(pinned):
            require_disk(engine, variant, variant.toolkit_size)
        try:
            digest = _digest(engine.pull(reference, pull_progress(reference, listener)), reference)
        except EngineError as error:
            raise _unavailable(variant, reference, error) from error
        if digest is None:
            raise SourceError(f"The engine pulled {reference} and does not say its digest: pull it by hand and look.")
        listener(Progress(what=f"pull {reference}", finished=True))
        digests[reference] = digest
    return digests


def _unavailable(variant: Variant, reference: str, error: EngineError) -> SourceError:
    instead = ", or use --origin packages" if variant.packages else ""
    return SourceError(
        f"The base image {reference} is not available from its registry ({str(error).rstrip('.')}): fix that, such "
        f"as the network or the engine's proxy and mirror settings{instead}."
    )


def _pulled_before(engine: Engine, references: Mapping[str, str]) -> dict[str, str] | None:
    """Returns the digest of each reference that was pulled earlier; None when one is missing."""
    digests: dict[str, str] = {}
    for reference in references.values():
        try:
            digest = _digest(engine.image(reference), reference)
        except ImageNotFoundError:
            return None
        if digest is None:
            return None
        digests[reference] = digest
    return digests


def _pinned(reference: str, digest: str) -> str:
    """`name:tag` → `name:tag@sha256:…`: a tag may move while the build runs."""
    return reference if "@" in reference else f"{reference}@{digest}"


def _digest(image: Image, reference: str) -> str | None:
    """Returns the image's digest in the repository of `reference`."""
    repository = _repository(reference)
    for entry in image.repo_digests:
        name, _, digest = entry.partition("@")
        if _repository(name) == repository:
            return digest
    return None


def _repository(reference: str) -> str:
    """`docker.io/library/ubuntu:24.04` → `ubuntu`, as docker abbreviates names in RepoDigests."""
    name = reference.partition("@")[0]
    head, _, last = name.rpartition("/")
    name = f"{head}/{last.partition(':')[0]}".removeprefix("/")
    return name.removeprefix("docker.io/").removeprefix("library/")


# Packages.


def _no_packages(variant: Variant) -> str:
    return f"No Debian package has the compiler of {variant.title}, so {variant.name} needs a registry's bases."


def _what(root: Root) -> str:
    return f"bases made of Debian {root.suite}'s packages" + (
        f" and {root.wheels.toolkit} {root.wheels.version} of the package index" if root.wheels else ""
    )


def _roots(debian: Packages) -> dict[str, Root]:
    return {"runtime": debian.runtime, "build": debian.build, "web": packages.WEB}


def _make(
    engine: Engine, variant: Variant, debian: Packages, platform: Platform | None, listener: Listener
) -> dict[str, BaseImage]:
    """Makes the bases that the engine lacks and returns all of them."""
    architecture = _MACHINES.get(os.uname().machine, os.uname().machine)
    if engine.info().architecture != architecture:
        raise SourceError(
            f"The packages origin makes bases for this machine ({architecture}), and the engine runs on "
            f"{engine.info().architecture}: use --origin registries."
        )
    other = platform if platform and platform.architecture != architecture else None
    if other:
        emulated.require_emulator(other)
    certificates = host_certificates()
    if certificates is None:
        raise SourceError("This machine has no bundle of certificate authorities: install ca-certificates.")
    targets = mirrors.index_targets(listener)
    roots = _roots(debian)
    if snapshot := mirrors.snapshot():
        mirrors.require(snapshot, (root.suite for root in roots.values()))
    content = certificates.read_bytes()
    keyed = emulated.base_key(architecture, other) if other else architecture
    names = {
        role: f"{PACKAGES_REPOSITORY}:{role}-{base_key(role, root, mirrors.apt_sources(targets, root), content, keyed)}"
        for role, root in roots.items()
    }
    cache = cache_directory()
    with locked(cache):
        missing = {role: roots[role] for role, name in names.items() if not engine.has_image(name)}
        if missing.keys() - {"web"}:
            require_disk(engine, variant, debian.size)
        # Roles with the same root share it; the certificates, which the runtime base must not have, are added last.
        for root in dict.fromkeys(missing.values()):
            with ownership.temporary_directory(cache) as directory:
                tar = directory / "root.tar"
                sources = mirrors.apt_sources(targets, root)
                # Node stays this machine's, since it makes the same web interface on every platform.
                of = other.architecture if other and root != packages.WEB else architecture
                hooks = _toolkit(root.wheels, of, directory / "toolkit.tar", listener) if root.wheels else []
                _bootstrap(tar, root, sources, listener, f"--architectures={of}", *hooks)
                for role in (role for role, of_role in missing.items() if of_role == root):
                    if role != "runtime":
                        _add_file(tar, CERTIFICATES, content)
                    if other is None:
                        engine.import_filesystem(tar, names[role], _changes(role, root))
                    else:
                        native = _compilers(directory, role, root, sources, (architecture, other), listener)
                        changes = _changes(role, root)
                        emulated.import_filesystem(engine, tar, names[role], changes, platform=other, native=native)
        shutil.rmtree(cache / _WHEELS, ignore_errors=True)  # the bases have them now
    return {role: BaseImage(reference=name, name=name, digest=engine.image(name).id) for role, name in names.items()}


def _compilers(
    directory: Path,
    role: str,
    root: Root,
    sources: tuple[str, ...],
    machines: tuple[str, Platform],
    listener: Listener,
) -> Path | None:
    """Writes the tar of this machine's compilers for another platform, if the role compiles and Debian has them."""
    packages_of = emulated.CROSS_PACKAGES.get(machines, ()) if role == "build" else ()
    if not packages_of:
        return None
    tar = directory / "native.tar"
    _bootstrap(tar, replace(root, packages=packages_of), sources, listener, "--variant=extract")
    return tar


def _toolkit(wanted: Wheels, architecture: str, tar: Path, listener: Listener) -> list[str]:
    """Writes the tar of the wheels' files and returns the options with which mmdebstrap unpacks it."""
    files = wheels.fetch(wanted, architecture, cache_directory() / _WHEELS, listener)
    what = f"unpack {wanted.toolkit} {wanted.version}"
    listener(Progress(what=what))
    wheels.write(wanted, files, tar)
    listener(Progress(what=what, finished=True))
    return wheels.hooks(wanted, tar)


def _versions(engine: Engine, build_base: str, debian: Packages) -> dict[str, str]:
    """Returns the recipe's ARGs for the toolkit's version, read from the packages in the build base."""
    found = {}
    for argument, package in debian.versions.items():
        query = ContainerSpec(image=build_base, entrypoint=("dpkg-query", "--show", "--showformat=${Version}", package))
        result = engine.probe(query)
        if result.exit_code:
            raise SourceError(f"The base {build_base} does not say the version of {package}: {result.output.strip()}")
        found[argument] = packages.upstream_version(result.stdout.strip())
    return found


def base_key(role: str, root: Root, sources: tuple[str, ...], certificates: bytes, architecture: str) -> str:
    """Returns a short hash of everything that determines the content of a base."""
    parts = [root.suite, architecture, *sources, *root.packages, *_changes(role, root), *_OPTIONS]
    parts += [*root.experimental, *wheels.key(root.wheels)]
    digest = hashlib.sha256("\0".join(parts).encode())
    if role != "runtime":
        digest.update(certificates)
    return digest.hexdigest()[:12]


def _changes(role: str, root: Root) -> list[str]:
    """Returns the Dockerfile instructions to apply on import.

    The runtime base has no label of ours, which images built from it would inherit; its repository identifies it.
    """
    if role == "runtime":
        return ['CMD ["bash"]']
    variables = " ".join(
        [*(f"{name}={CERTIFICATES}" for name in _CERTIFICATE_VARIABLES), *([wheels.PATH] if root.wheels else [])]
    )
    return ['CMD ["bash"]', f"ENV {variables}", f"LABEL {RESOURCE}=origin"]


_OPTIONS = (
    "--variant=minbase",
    # No fsync for each file, here and in the recipes' apt-get, as in Docker's official Debian and Ubuntu images.
    "--dpkgopt=force-unsafe-io",
    # mmdebstrap copies these two from the host.
    '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
)


def _bootstrap(tar: Path, root: Root, sources: tuple[str, ...], listener: Listener, *options: str) -> None:
    """Writes the tar of a Debian root file system; `options` are further ones of mmdebstrap."""
    what = f"make a Debian {root.suite} base" + (f" with {', '.join(root.packages)}" if root.packages else "")
    if not mirrors.KEYRING.is_file():
        raise SourceError(
            f"{mirrors.KEYRING} is missing, so Debian's packages cannot be verified: install the package of it."
        )
    arguments = ["mmdebstrap", "--format=tar", *_OPTIONS, *options]
    arguments += _apt_options(root)
    if root.packages:
        arguments.append(f"--include={','.join(root.packages)}")
    arguments += [root.suite, str(tar), *sources]

    def note(line: str) -> None:
        listener(Progress(what=what, note=line.removeprefix("I: ")))

    outcome = programs.run(arguments, on_line=note)
    if outcome.exit_code == programs.NOT_INSTALLED and os.geteuid() == 0:
        mirrors.apt(("install", "--yes", "--no-install-recommends", "mmdebstrap"), listener)
        outcome = programs.run(arguments, on_line=note)
    if outcome.exit_code == programs.NOT_INSTALLED:
        raise SourceError("The packages origin needs mmdebstrap: install it (`apt-get install mmdebstrap`).")
    if outcome.exit_code:
        raise SourceError(
            "mmdebstrap could not make a Debian base: run this as root, or allow unprivileged user namespaces, and "
            f"check that the apt mirror has {root.suite}{' and experimental' if root.experimental else ''}.",
            detail="\n".join(outcome.stderr.splitlines()[-20:]),
        )
    listener(Progress(what=what, finished=True))


def _apt_options(root: Root) -> list[str]:
    """Returns mmdebstrap's options for what apt does in the root file system, and in the recipe's steps later."""
    options = []
    if root.suite == UNSTABLE or mirrors.snapshot():
        # A mirror's Release file may have expired, and a snapshot's has.
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
    if root.experimental:
        # Before unstable, which has priority 500; no package but these is taken from experimental.
        lines = (
            f"Package: {' '.join(f'src:{source}:any' for source in root.experimental)}",
            "Pin: release a=experimental",
            "Pin-Priority: 600",
        )
        quoted = " ".join(f"'{line}'" for line in lines)
        directory = '"$1/etc/apt/preferences.d"'
        options.append(f"--setup-hook=mkdir -p {directory} && printf '%s\\n' {quoted} > {directory}/experimental")
    return options


def _add_file(tar: Path, path: str, content: bytes) -> None:
    """Appends a file to a tar, owned by root and readable by all."""
    entry = tarfile.TarInfo(f".{path}")
    entry.size, entry.mode = len(content), 0o644
    with tarfile.open(tar, "a", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(content))
