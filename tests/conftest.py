import os


os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
from hypothesis import settings


settings.register_profile("ci", deadline=None, max_examples=20)
settings.load_profile("ci")
