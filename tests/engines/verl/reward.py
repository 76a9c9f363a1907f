"""The reward of an arithmetic problem, in the form in which verl loads it from a file."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_unused):
    """1 for the answer alone, and a little for saying a number at all."""
    said = solution_str.replace("<|im_end|>", "").strip()
    return {"score": float(said == ground_truth) + 0.1 * said.isdigit(), "acc": float(said == ground_truth)}
