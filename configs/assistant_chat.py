# An assistant: the newest run of configs/assistant_base.py, tuned on conversations, of which the assistant's
# words alone are targets.
#     python train.py configs/assistant_chat.py
#     python chat.py

dataset = "assistant_chat"  # written by tasks/, no download
documents = "aligned"  # a sequence begins with a conversation, and none sees another
init_from = "run:assistant_base"  # the model's shape comes with the weights
gradient_accumulation_steps = 1
batch_size = 16

optimizer = "muon"
schedule = "linear"
decay_share = 0.9

learning_rate = 5e-3
muon_learning_rate = 0.02
max_iters = 800
warmup_iters = 20
min_lr = 0.0
beta2 = 0.99
weight_decay = 0.0

eval_interval = 400
eval_iters = 4
log_interval = 50
sample_tokens = 60
