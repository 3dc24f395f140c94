"""Why a method does what it does: pose bias, attention maps."""
