"""The letters that tensor names end in: one per axis, with one meaning in every file.

A capital is the whole axis; the lower-case letter is the part held here (``E`` experts of the
layer, ``e`` those resident on this device).
"""

AXES: dict[str, str] = {
    "B": "sequences in a batch",
    "S": "positions fed to the model",
    "C": "positions visible to attention",
    "T": "tokens (B·S)",
    "D": "hidden size",
    "V": "vocabulary",
    "L": "layers",
    "H": "attention heads",
    "J": "key-value heads",
    "N": "query-key width without rotary position",
    "R": "query-key width with rotary position",
    "Q": "whole query-key width (N + R)",
    "U": "value width",
    "Z": "key-value latent width (kv_lora_rank)",
    "A": "query latent width (q_lora_rank)",
    "E": "routed experts of a layer",
    "G": "expert groups",
    "K": "experts chosen per token",
    "P": "token-expert pairs (T·K)",
    "F": "feed-forward width",
    "O": "outputs per prompt",
}
