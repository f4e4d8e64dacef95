"""Lepton, through its API."""

from executors.base import Kind
from executors.lepton.place import LeptonPlace
from executors.lepton.profile import LeptonProfile

KIND = Kind(profile=LeptonProfile, place=LeptonPlace)
