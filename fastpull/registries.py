"""Where an image goes: the reference made from `fastpull build`'s options, and how to log in there. Pure."""

import re

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fetcher.registry import Reference

KINDS = ("auto", "ecr", "gar", "dockerhub", "generic")
_ECR = re.compile(
    r"(?:(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?|public\.ecr\.aws)"
)
_GAR = re.compile(r"(?P<location>[a-z0-9-]+)-docker\.pkg\.dev|(?:[a-z]+\.)?gcr\.io")


def kind_of(host: str) -> str:
    """ecr, gar, dockerhub or generic: every registry is one of them."""
    if _ECR.fullmatch(host):
        return "ecr"
    if _GAR.fullmatch(host):
        return "gar"
    return "dockerhub" if host == "docker.io" else "generic"


def destination(
    image: str, kind: str, *, project: str | None = None, location: str = "us-central1", repository: str | None = None
) -> Reference:
    """The reference to push to. For Artifact Registry a bare name is completed from project and repository.

    Raises:
        Failure: a digest was given, or the image is not at the kind of registry that was named.
        InvalidReference: it is none.
    """
    if kind == "gar" and "/" not in image:
        if project is None or repository is None:
            hint = f"--project-id and --repository, or the whole {location}-docker.pkg.dev/PROJECT/REPOSITORY/{image}"
            raise Failure("--registry gar: where in Artifact Registry?", hint=hint, code=ExitCode.USAGE)
        image = f"{location}-docker.pkg.dev/{project}/{repository}/{image}"
    reference = Reference.parse(image)
    if reference.digest is not None:
        raise Failure(f"{image}: a digest cannot be pushed to", hint="name a tag", code=ExitCode.USAGE)
    found = kind_of(reference.host)
    if kind not in ("auto", "generic", found):
        hint = f"{reference.host} looks like {found}; --registry auto takes any"
        raise Failure(f"{image} is not at --registry {kind}", hint=hint, code=ExitCode.USAGE)
    return reference


def login_hint(reference: Reference) -> str:
    """How a person logs in to the registry of `reference`."""
    host = reference.host
    ecr = _ECR.fullmatch(host)
    if ecr is not None and ecr["region"]:
        return f"aws ecr get-login-password --region {ecr['region']} | nerdctl login -u AWS --password-stdin {host}"
    if ecr is not None:
        return f"aws ecr-public get-login-password --region us-east-1 | nerdctl login -u AWS --password-stdin {host}"
    return f"gcloud auth configure-docker {host}" if _GAR.fullmatch(host) else f"nerdctl login {host}"
