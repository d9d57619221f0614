"""The whole method in one flat file: annotate, train, check. The trainer's readable twin; a test holds the two equal.

    python recipes/loop.py

Shape suffixes: B records, T tokens, N completion tokens, D hidden width.
"""

import torch

from anchorlwf import anchor_loss, annotate, load_model
from anchorlwf.divergence import completion_hidden
from anchorlwf.loss.scores import token_scores
from anchorlwf.model.batch import collate
from anchorlwf.model.head import read_head, reference_head
from anchorlwf.world import build_world, draw_errata

STEPS, RATE, RANK, BETA, HOLD, BUDGET, SEED = 200, 3e-4, 8, 10.0, 0.9, 0.01, 0


def corrections(count=4):
    """Questions about the embedded world whose right answers the model does not know yet."""
    world = build_world()
    return [erratum.prompts(1)[0] for erratum in draw_errata(world, count, identity=1, seed=3)]


def loop(model, records, steps=STEPS, stop=True, say=print):
    """Train `model` on complete records; returns each step's loss in nats."""
    # The reference is the same network with its adapter off, so nothing is loaded twice.
    torch.manual_seed(SEED)
    model.attach_lora(RANK, 8.0 * RANK, 0.0, "mlp", SEED)
    trained = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    batch = collate(records, model.codec.pad_id).to(model.device)
    anchor_N, head, ref_head = batch.confidence_N > 0, read_head(model), reference_head(model)
    with model.as_reference() as reference:
        ref_hidden_ND = completion_hidden(reference.net, reference.backbone, batch)

    losses, beta = [], BETA
    for step in range(1, steps + 1):
        model.net.train()
        hidden_ND = completion_hidden(model.net, model.backbone, batch)
        # Cross-entropy at anchors, KL(reference || model) at keep tokens: one formula for both.
        divergence_N = anchor_loss(
            hidden_ND,
            ref_hidden_ND,
            head.weight_VD,
            batch.token_ids_N,
            batch.confidence_N,
            bias=head.bias_V,
            ref_weight=ref_head.weight_VD,
            ref_bias=ref_head.bias_V,
            logit_scale=head.scale,
            softcap=head.softcap,
        )
        # A held anchor (the greedy choice, probability >= HOLD) no longer pulls.
        best_N, log_p_N = token_scores(head, hidden_ND, batch.token_ids_N)
        held_N = anchor_N & (best_N == batch.token_ids_N) & (log_p_N.exp() >= HOLD)
        anchors = (divergence_N * ~held_N)[anchor_N].sum() / max(1, int(anchor_N.sum()))
        keeps = divergence_N[~anchor_N].sum() / max(1, int((~anchor_N).sum()))
        loss = anchors + beta * keeps
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

        drift = float(keeps.detach())
        losses.append(float(loss.detach()))
        say(f"step {step:3d}  loss {losses[-1]:.4f}  held {int(held_N.sum())}/{int(anchor_N.sum())}  drift {drift:.5f}")
        # The drift budget steers beta; it is not a wish.
        beta = max(BETA, beta * min(max((max(drift, 1e-12) / (0.8 * BUDGET)) ** 0.25, 0.8), 1.5))
        if stop and torch.equal(held_N, anchor_N) and drift <= BUDGET and torch.equal(best_N, batch.token_ids_N):
            break
    model.net.eval()
    return losses


def main():
    """Correct five answers of the embedded model."""
    model = load_model()
    records = annotate(model, corrections(), "target")
    loop(model, records)
    for record in records:
        before, after = model.codec.decode(record.original_ids), record.completion
        print(f"{record.messages[-1]['content']}\n  before: {before}\n  wanted: {after}")


if __name__ == "__main__":
    main()
