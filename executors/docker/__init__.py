"""Docker, on this machine."""

from executors.base import Kind
from executors.docker.place import DockerPlace
from executors.docker.profile import DockerProfile

KIND = Kind(profile=DockerProfile, place=DockerPlace)
