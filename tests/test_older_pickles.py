"""What earlier releases have pickled is still read, though its modules have moved since."""

import base64
import pickle

import pytest
import torch
from torch import nn

from modfast import Circuit, ConvergenceWarning, EnmeshmentLoss, Partition, ShuffleTest
from modfast.data import Dataset
from modfast.train import TrainConfig

CLUSTERS = Partition([0, 1], [0, 1, 1], 2)
PICKLED = {
    "loss": (
        "gASVJQUAAAAAAACME21vZGZhc3QuZW5lcmd5X2xvc3OUjA5Fbm1lc2htZW50TG9zc5STlCmBlH2UKIwIdHJhaW5pbmeUiIwLX3Bh"
        "cmFtZXRlcnOUfZSMCF9idWZmZXJzlH2UjBtfbm9uX3BlcnNpc3RlbnRfYnVmZmVyc19zZXSUj5SME19iYWNrd2FyZF9wcmVfaG9v"
        "a3OUjAtjb2xsZWN0aW9uc5SMC09yZGVyZWREaWN0lJOUKVKUjA9fYmFja3dhcmRfaG9va3OUaA8pUpSMFl9pc19mdWxsX2JhY2t3"
        "YXJkX2hvb2uUTowOX2ZvcndhcmRfaG9va3OUaA8pUpSMGl9mb3J3YXJkX2hvb2tzX3dpdGhfa3dhcmdzlGgPKVKUjBxfZm9yd2Fy"
        "ZF9ob29rc19hbHdheXNfY2FsbGVklGgPKVKUjBJfZm9yd2FyZF9wcmVfaG9va3OUaA8pUpSMHl9mb3J3YXJkX3ByZV9ob29rc193"
        "aXRoX2t3YXJnc5RoDylSlIwRX3N0YXRlX2RpY3RfaG9va3OUaA8pUpSMFV9zdGF0ZV9kaWN0X3ByZV9ob29rc5RoDylSlIwaX2xv"
        "YWRfc3RhdGVfZGljdF9wcmVfaG9va3OUaA8pUpSMG19sb2FkX3N0YXRlX2RpY3RfcG9zdF9ob29rc5RoDylSlIwIX21vZHVsZXOU"
        "fZSMCXJlZHVjdGlvbpSMBG1lYW6UjAlfYXR0YWNoZWSUTowGX25hbWVzlF2UjAEwlGGMC19wYXJ0aXRpb25zlF2UjBFtb2RmYXN0"
        "LnBhcnRpdGlvbpSMCVBhcnRpdGlvbpSTlIwMdG9yY2guX3V0aWxzlIwSX3JlYnVpbGRfdGVuc29yX3YylJOUKIwNdG9yY2guc3Rv"
        "cmFnZZSMEF9sb2FkX2Zyb21fYnl0ZXOUk5RCCgEAAIACigps/JxG+SBqqFAZLoACTekDLoACfXEAKFgQAAAAcHJvdG9jb2xfdmVy"
        "c2lvbnEBTekDWA0AAABsaXR0bGVfZW5kaWFucQKIWAoAAAB0eXBlX3NpemVzcQN9cQQoWAUAAABzaG9ydHEFSwJYAwAAAGludHEG"
        "SwRYBAAAAGxvbmdxB0sEdXUugAIoWAcAAABzdG9yYWdlcQBjdG9yY2gKTG9uZ1N0b3JhZ2UKcQFYDgAAADkzODQ1MDE1NDczMzYw"
        "cQJYAwAAAGNwdXEDSwJOdHEEUS6AAl1xAFgOAAAAOTM4NDUwMTU0NzMzNjBxAWEuAgAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAlIWU"
        "UpRLAEsChZRLAYWUiWgPKVKUdJRSlGg1KGg4QhIBAACAAooKbPycRvkgaqhQGS6AAk3pAy6AAn1xAChYEAAAAHByb3RvY29sX3Zl"
        "cnNpb25xAU3pA1gNAAAAbGl0dGxlX2VuZGlhbnECiFgKAAAAdHlwZV9zaXplc3EDfXEEKFgFAAAAc2hvcnRxBUsCWAMAAABpbnRx"
        "BksEWAQAAABsb25ncQdLBHV1LoACKFgHAAAAc3RvcmFnZXEAY3RvcmNoCkxvbmdTdG9yYWdlCnEBWA4AAAA5Mzg0NTAxNTU0MDMw"
        "NHECWAMAAABjcHVxA0sDTnRxBFEugAJdcQBYDgAAADkzODQ1MDE1NTQwMzA0cQFhLgMAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAEA"
        "AAAAAAAAlIWUUpRLAEsDhZRLAYWUiWgPKVKUdJRSlEsCh5RSlGGMB19waWVjZXOUfZR1Yi4="
    ),
    "shuffle_test": (
        "gASV6QEAAAAAAACMEW1vZGZhc3Quc2h1ZmZsaW5nlIwLU2h1ZmZsZVRlc3SUk5QoRz/gAAAAAAAAjAx0b3JjaC5fdXRpbHOUjBJf"
        "cmVidWlsZF90ZW5zb3JfdjKUk5QojA10b3JjaC5zdG9yYWdllIwQX2xvYWRfZnJvbV9ieXRlc5STlEIMAQAAgAKKCmz8nEb5IGqo"
        "UBkugAJN6QMugAJ9cQAoWBAAAABwcm90b2NvbF92ZXJzaW9ucQFN6QNYDQAAAGxpdHRsZV9lbmRpYW5xAohYCgAAAHR5cGVfc2l6"
        "ZXNxA31xBChYBQAAAHNob3J0cQVLAlgDAAAAaW50cQZLBFgEAAAAbG9uZ3EHSwR1dS6AAihYBwAAAHN0b3JhZ2VxAGN0b3JjaApE"
        "b3VibGVTdG9yYWdlCnEBWA4AAAA5Mzg0NTAxNTMzODYyNHECWAMAAABjcHVxA0sCTnRxBFEugAJdcQBYDgAAADkzODQ1MDE1MzM4"
        "NjI0cQFhLgIAAAAAAAAAAAAAAAAA8D8AAAAAAAAAQJSFlFKUSwBLAoWUSwGFlImMC2NvbGxlY3Rpb25zlIwLT3JkZXJlZERpY3SU"
        "k5QpUpR0lFKURz/4AAAAAAAARz/gAAAAAAAAR8AAAAAAAAAARz/QAAAAAAAAdJSBlC4="
    ),
    "config": (
        "gASV1QAAAAAAAACMDW1vZGZhc3QudHJhaW6UjAtUcmFpbkNvbmZpZ5STlCmBlH2UKIwRZW5tZXNobWVudF93ZWlnaHSURz/mZmZm"
        "ZmZmjAZsYXllcnOUjANmYzKUhZSMDG51bV9jbHVzdGVyc5RLBIwGZXBvY2hzlEsDjApiYXRjaF9zaXpllEtAjA1sZWFybmluZ19y"
        "YXRllEc/UGJN0vGp/IwEc2VlZJRLKowGZGV2aWNllIwEYXV0b5SMB3RocmVhZHOUTowJcHJlY2lzaW9ulIwHZmxvYXQzMpR1Yi4="
    ),
    "partition": (
        "gASV7gIAAAAAAACMEW1vZGZhc3QucGFydGl0aW9ulIwJUGFydGl0aW9ulJOUjAx0b3JjaC5fdXRpbHOUjBJfcmVidWlsZF90ZW5z"
        "b3JfdjKUk5QojA10b3JjaC5zdG9yYWdllIwQX2xvYWRfZnJvbV9ieXRlc5STlEIKAQAAgAKKCmz8nEb5IGqoUBkugAJN6QMugAJ9"
        "cQAoWBAAAABwcm90b2NvbF92ZXJzaW9ucQFN6QNYDQAAAGxpdHRsZV9lbmRpYW5xAohYCgAAAHR5cGVfc2l6ZXNxA31xBChYBQAA"
        "AHNob3J0cQVLAlgDAAAAaW50cQZLBFgEAAAAbG9uZ3EHSwR1dS6AAihYBwAAAHN0b3JhZ2VxAGN0b3JjaApMb25nU3RvcmFnZQpx"
        "AVgOAAAAOTM4NDUwMTUwMzI4NjRxAlgDAAAAY3B1cQNLAk50cQRRLoACXXEAWA4AAAA5Mzg0NTAxNTAzMjg2NHEBYS4CAAAAAAAA"
        "AAAAAAAAAAAAAQAAAAAAAACUhZRSlEsASwKFlEsBhZSJjAtjb2xsZWN0aW9uc5SMC09yZGVyZWREaWN0lJOUKVKUdJRSlGgFKGgI"
        "QhIBAACAAooKbPycRvkgaqhQGS6AAk3pAy6AAn1xAChYEAAAAHByb3RvY29sX3ZlcnNpb25xAU3pA1gNAAAAbGl0dGxlX2VuZGlh"
        "bnECiFgKAAAAdHlwZV9zaXplc3EDfXEEKFgFAAAAc2hvcnRxBUsCWAMAAABpbnRxBksEWAQAAABsb25ncQdLBHV1LoACKFgHAAAA"
        "c3RvcmFnZXEAY3RvcmNoCkxvbmdTdG9yYWdlCnEBWA4AAAA5Mzg0NTAxNTQ2NzUyMHECWAMAAABjcHVxA0sDTnRxBFEugAJdcQBY"
        "DgAAADkzODQ1MDE1NDY3NTIwcQFhLgMAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAEAAAAAAAAAlIWUUpRLAEsDhZRLAYWUiWgQKVKU"
        "dJRSlEsCh5RSlC4="
    ),
    "circuit": (
        "gASVXwIAAAAAAACMD21vZGZhc3QuY2lyY3VpdJSMB0NpcmN1aXSUk5QpgZR9lCiMBWxhYmVslEsDjAVtYXNrc5R9lIwCZmOUjAx0"
        "b3JjaC5fdXRpbHOUjBJfcmVidWlsZF90ZW5zb3JfdjKUk5QojA10b3JjaC5zdG9yYWdllIwQX2xvYWRfZnJvbV9ieXRlc5STlEP+"
        "gAKKCmz8nEb5IGqoUBkugAJN6QMugAJ9cQAoWBAAAABwcm90b2NvbF92ZXJzaW9ucQFN6QNYDQAAAGxpdHRsZV9lbmRpYW5xAohY"
        "CgAAAHR5cGVfc2l6ZXNxA31xBChYBQAAAHNob3J0cQVLAlgDAAAAaW50cQZLBFgEAAAAbG9uZ3EHSwR1dS6AAihYBwAAAHN0b3Jh"
        "Z2VxAGN0b3JjaApCb29sU3RvcmFnZQpxAVgOAAAAOTM4NDUwMTYyODg1NjBxAlgDAAAAY3B1cQNLBE50cQRRLoACXXEAWA4AAAA5"
        "Mzg0NTAxNjI4ODU2MHEBYS4EAAAAAAAAAAEAAAGUhZRSlEsASwJLAoaUSwJLAYaUiYwLY29sbGVjdGlvbnOUjAtPcmRlcmVkRGlj"
        "dJSTlClSlHSUUpRzjAljcml0ZXJpb26UjARsb3NzlIwJdG9sZXJhbmNllEcAAAAAAAAAAIwKbnVtX2lucHV0c5RLBIwLbG9zc19i"
        "ZWZvcmWURz/gAAAAAAAAjApsb3NzX2FmdGVylEc/0AAAAAAAAIwPYWNjdXJhY3lfYmVmb3JllEc/8AAAAAAAAIwOYWNjdXJhY3lf"
        "YWZ0ZXKURz/wAAAAAAAAdWIu"
    ),
    "warning": ("gASVNgAAAAAAAACMEG1vZGZhc3Quc3BlY3RyYWyUjBJDb252ZXJnZW5jZVdhcm5pbmeUk5SMBGxhdGWUhZRSlC4="),
    "dataset": (
        "gASVVgMAAAAAAACMD21vZGZhc3QuZGF0YXNldJSMB0RhdGFzZXSUk5QpgZR9lCiMBG5hbWWUjAR0aW55lIwMdHJhaW5faW1hZ2Vz"
        "lIwMdG9yY2guX3V0aWxzlIwSX3JlYnVpbGRfdGVuc29yX3YylJOUKIwNdG9yY2guc3RvcmFnZZSMEF9sb2FkX2Zyb21fYnl0ZXOU"
        "k5RD/oACigps/JxG+SBqqFAZLoACTekDLoACfXEAKFgQAAAAcHJvdG9jb2xfdmVyc2lvbnEBTekDWA0AAABsaXR0bGVfZW5kaWFu"
        "cQKIWAoAAAB0eXBlX3NpemVzcQN9cQQoWAUAAABzaG9ydHEFSwJYAwAAAGludHEGSwRYBAAAAGxvbmdxB0sEdXUugAIoWAcAAABz"
        "dG9yYWdlcQBjdG9yY2gKQnl0ZVN0b3JhZ2UKcQFYDgAAADkzOTc4NjQ0NzYzNjQ4cQJYAwAAAGNwdXEDSwROdHEEUS6AAl1xAFgO"
        "AAAAOTM5Nzg2NDQ3NjM2NDhxAWEuBAAAAAAAAAAAAAAAlIWUUpRLAChLAUsBSwJLAnSUKEsESwRLAksBdJSJjAtjb2xsZWN0aW9u"
        "c5SMC09yZGVyZWREaWN0lJOUKVKUdJRSlIwMdHJhaW5fbGFiZWxzlGgKKGgNQgIBAACAAooKbPycRvkgaqhQGS6AAk3pAy6AAn1x"
        "AChYEAAAAHByb3RvY29sX3ZlcnNpb25xAU3pA1gNAAAAbGl0dGxlX2VuZGlhbnECiFgKAAAAdHlwZV9zaXplc3EDfXEEKFgFAAAA"
        "c2hvcnRxBUsCWAMAAABpbnRxBksEWAQAAABsb25ncQdLBHV1LoACKFgHAAAAc3RvcmFnZXEAY3RvcmNoCkxvbmdTdG9yYWdlCnEB"
        "WA4AAAA5Mzk3ODY0NDU2NTUzNnECWAMAAABjcHVxA0sBTnRxBFEugAJdcQBYDgAAADkzOTc4NjQ0NTY1NTM2cQFhLgEAAAAAAAAA"
        "AAAAAAAAAACUhZRSlEsASwGFlEsBhZSJaBUpUpR0lFKUjAt0ZXN0X2ltYWdlc5RoGIwLdGVzdF9sYWJlbHOUaCGMB2NsYXNzZXOU"
        "jAFhlIWUjARtZWFulEcAAAAAAAAAAIwDc3RklEc/8AAAAAAAAHViLg=="
    ),
}


def load(name):
    return pickle.loads(base64.b64decode(PICKLED[name]))


def test_a_loss():
    loss = load("loss")
    assert isinstance(loss, EnmeshmentLoss)
    assert dict(loss.partitions) == {"0": CLUSTERS}
    loss.attach(nn.Sequential(nn.Linear(3, 2)))
    assert 0.0 < loss().item() < 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config", TrainConfig(epochs=3)),
        ("partition", CLUSTERS),
        ("circuit", Circuit(3, {"fc": torch.eye(2, dtype=torch.bool)}, "loss", 0.0, 4, 0.5, 0.25, 1.0, 1.0)),
    ],
)
def test_what_can_be_compared(name, expected):
    assert load(name) == expected


def test_a_shuffle_test():
    test = load("shuffle_test")
    assert type(test) is ShuffleTest
    assert test.shuffled.tolist() == [1.0, 2.0]
    assert (test.normalized_cut, test.mean, test.std, test.z_score, test.p_value) == (
        0.5,
        1.5,
        0.5,
        -2.0,
        0.25,
    )


def test_a_warning_and_a_data_set():
    assert type(load("warning")) is ConvergenceWarning
    dataset = load("dataset")
    assert type(dataset) is Dataset
    assert (dataset.name, dataset.classes, dataset.image_shape) == ("tiny", ("a",), (1, 2, 2))
