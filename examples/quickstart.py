"""From imbalanced texts to a calibrated classifier, in one to two minutes on one CPU core: `python quickstart.py`."""

from data.bbc_longtail import load_bbc_longtail, minilm_path
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, pipeline

from hf_focal import FocalTextClassificationPipeline, FocalTrainer, FocalTrainingArguments, compute_metrics


# 1. Data: BBC News with 300 training documents of its largest class and 6 of its smallest.
splits = load_bbc_longtail()
names = splits["train"].features["label"].names

# 2. A tokenizer. The data collator pads each batch, so the texts are only truncated here.
tokenizer = AutoTokenizer.from_pretrained(minilm_path())
splits = splits.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=64), batched=True)

# 3. A model with a new head, and the names of its classes.
model = AutoModelForSequenceClassification.from_pretrained(
    minilm_path(),
    num_labels=len(names),
    id2label=dict(enumerate(names)),
    label2id={name: k for k, name in enumerate(names)},
)

# 4. The settings of the training and of the loss. "inverse": the rarer a class, the larger its weight.
args = FocalTrainingArguments(
    output_dir="outputs/quickstart",
    focal_gamma=2.0,
    focal_alpha="inverse",
    num_train_epochs=3,
    learning_rate=2e-4,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=64,
    save_strategy="no",
)

# 5. FocalTrainer instead of Trainer.
trainer = FocalTrainer(
    model=model,
    args=args,
    train_dataset=splits["train"],
    eval_dataset=splits["validation"],
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=compute_metrics,
)
trainer.train()

# 6. Calibration on the validation split, for reliable probabilities; it is stored in the config.
trainer.calibrate()
trainer.save_model()

# 7. The saved model decides by the posterior, here for equally likely classes, unlike in training.
classify = pipeline(
    "text-classification",
    model="outputs/quickstart",
    pipeline_class=FocalTextClassificationPipeline,
    operating_point="balanced",
)
for text in (
    "The striker scored twice in the second half of the cup final.",
    "Shares in the bank fell after it warned that profits would be lower this year.",
    "The new phone runs software that blocks viruses and spam.",
):
    prediction = classify(text)[0]
    print(f"{prediction['label']:<14}{prediction['score']:.2f}  {text}")
