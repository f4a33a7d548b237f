"""What a failure of S3 or of a disk means: one line with the cause and the remedy, and whether time may heal it."""

import errno
import os

from botocore import exceptions as boto  # type: ignore[import-untyped]

from hilander_dist.errors import redact


def diagnose(error: Exception) -> tuple[str, str, bool]:
    """Return cause, remedy and whether time may heal it; no cause for what is no failure of the storage."""
    import aiohttp  # 0.3 s that runs without an error are spared

    endpoint = redact(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "of AWS")
    code, status, message = response(error)
    if code:
        passing = code in _PASSING_CODES or status == 429 or (status >= 500 and status != 501)
        other = (f"the S3 server answers {code} ({message})", "check AWS_ENDPOINT_URL and the log of the server")
        return *_S3_CODES.get(code, other), passing
    if isinstance(error, _CREDENTIAL_ERRORS):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return f"no S3 credentials ({one_line(error)})", remedy, isinstance(error, _LATE_CREDENTIALS)
    if isinstance(error, boto.SSLError):
        return (
            f"no TLS with the S3 endpoint {endpoint}",
            "check http:// or https:// in AWS_ENDPOINT_URL, and AWS_CA_BUNDLE",
            True,
        )
    if isinstance(error, (*_NETWORK_ERRORS, aiohttp.ClientError)):
        cause = f"the S3 endpoint {endpoint} cannot be reached ({type(error).__name__})"
        return cause, "check AWS_ENDPOINT_URL, the network, and that the server runs", True
    if isinstance(error, boto.ParamValidationError):
        return one_line(error), "check the bucket name", False
    if isinstance(error, boto.BotoCoreError) or (isinstance(error, ValueError) and "nvalid endpoint" in str(error)):
        return (
            f"S3 cannot be set up ({one_line(error)})",
            "check AWS_ENDPOINT_URL and the other AWS_* variables",
            False,
        )
    if isinstance(error, OSError):
        number = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else 0)
        return *_DISK_ERRORS.get(number, (one_line(error), "check the disk")), False
    return "", "", False


def response(error: BaseException | None) -> tuple[str, int, str]:
    """Return code, HTTP status and message of the S3 answer that an error stems from; no code where there is none."""
    while error is not None:
        if isinstance(error, boto.ClientError):
            failure = error.response.get("Error", {})
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            return str(failure.get("Code") or status), status, one_line(failure.get("Message", ""))
        error = error.__cause__
    return "", 0, ""


def one_line(text: object) -> str:
    """The text without line breaks and passwords, cut to 300 characters."""
    return redact(" ".join(str(text).split()))[:300]


_KEY_REMEDY = (
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they belong to the server at AWS_ENDPOINT_URL"
)
_RENEW_REMEDY = "renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_REGION = ("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's region")
_EXPIRED = ("the S3 credentials have expired", _RENEW_REMEDY)
_DENIED = ("access is denied (403)", "check that the key in AWS_ACCESS_KEY_ID may list, read and write in this bucket")
_NO_OBJECT = ("no such object (404)", "check the path, the bucket name and AWS_ENDPOINT_URL")
_CHANGED = ("the file changed while it was read (412)", "start again when its writer has finished")
_S3_CODES = {
    "InvalidAccessKeyId": ("the server does not know the access key (403)", _KEY_REMEDY),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key (403)", _KEY_REMEDY),
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": ("the session token is not valid", _RENEW_REMEDY),
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "NoSuchBucket": (
        "the bucket does not exist (404)",
        "check the bucket name and AWS_ENDPOINT_URL, or create the bucket",
    ),
    "InvalidBucketName": ("this is no name that a bucket can have", "check the bucket name"),
    "NoSuchKey": _NO_OBJECT,
    "404": _NO_OBJECT,
    "PreconditionFailed": _CHANGED,
    "412": _CHANGED,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "RequestTimeTooSkewed": ("this machine's clock differs from the server's", "set the clock"),
}
_PASSING_CODES = {"SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "Throttling", "429"}
_LATE_CREDENTIALS = (boto.NoCredentialsError, boto.CredentialRetrievalError)  # a metadata service may be busy
_CREDENTIAL_ERRORS = (*_LATE_CREDENTIALS, boto.PartialCredentialsError, boto.TokenRetrievalError, boto.ProfileNotFound)
_NETWORK_ERRORS = (TimeoutError, ConnectionError, boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError)
_DISK_ERRORS = {
    errno.ENOENT: ("no such file or directory", "check the path, and that every node of the cluster sees it"),
    errno.EACCES: ("permission is denied", "check the owner and the mode of the path and of the directories above it"),
    errno.EPERM: ("permission is denied", "check the owner and the mode of the path and of the directories above it"),
    errno.EEXIST: ("a file is where a directory is needed", "move the file away, or choose another path"),
    errno.ENOTDIR: ("a file is where a directory is needed", "move the file away, or choose another path"),
    errno.EISDIR: ("a directory is where a file is needed", "name a file in it"),
    errno.ENOSPC: ("the disk is full", "free some space, or choose another path"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another path"),
    errno.EROFS: ("the file system is read-only", "choose another path"),
}
