"""What a user sees of a run while it trains."""

from __future__ import annotations

from vidray.training.worker import line_of


def test_a_line_tells_loss_learning_rate_speed_and_the_time_left():
    row = {
        **{"kind": "train", "epoch": 0, "step": 20, "num_steps": 10, "loss": 0.5, "learning_rate": 0.00012},
        **{"clips_per_second": 8.0, "data_wait_seconds": 5.0, "total_seconds": 50.0},
    }
    line = line_of(row, num_epochs=4, num_steps=740)
    # 720 steps are left, of 5 seconds each.
    assert line == (
        "epoch 1/4 step 20: loss 0.5000, learning rate 0.00012, 8.0 clips/s, 10% waiting for data, 1:00:00 left"
    )
