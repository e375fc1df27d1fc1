"""Multipart uploads to S3.

s3fs uploads the parts in batches: it computes the checksums of a whole batch while no request is in flight, and starts
the next batch when the last part has arrived. Here each part follows as soon as an earlier one has arrived.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from ray_estimator._storage.concurrency import map_in_order

logger = logging.getLogger(__name__)


def put_in_parts(filesystem: Any, local_path: str, path: str, part_bytes: int, threads: int) -> None:
    """Upload a local file in several parts, as one atomic put.

    Args:
        filesystem: An `s3fs.S3FileSystem`.
        local_path: The file to upload, at least one byte long.
        path: Bucket and key.
        part_bytes: Size of a part.
        threads: Maximum number of parts in memory and in flight.
    """
    bucket, key, _ = filesystem.split_path(path)
    created = filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    upload = {"Bucket": bucket, "Key": key, "UploadId": created["UploadId"]}

    def put_part(offset: int) -> dict[str, Any]:
        with open(local_path, "rb") as file:
            file.seek(offset)
            body = file.read(part_bytes)
        number = offset // part_bytes + 1
        answer = filesystem.call_s3("upload_part", PartNumber=number, Body=body, **upload)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        parts = list(map_in_order(put_part, range(0, os.path.getsize(local_path), part_bytes), threads))
        filesystem.call_s3("complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload)
    except BaseException:
        try:
            filesystem.call_s3("abort_multipart_upload", **upload)
        except Exception as error:  # The first error is raised.
            logger.warning("Could not abort the upload of an object after an error: %s", type(error).__name__)
        raise
