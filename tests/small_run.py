"""The words of the least run that goes through every part: two steps, one batch of validation and of test, on the CPU."""

SMALL = (
    "data=fake",
    "data.num_classes=3",
    "data.image_size=16",
    "data.train_samples=24",
    "data.test_samples=6",
    "model=lenet",
    "optim=sgd",
    "optim.lr=0.01",
    "epochs=1",
    "batch_size=4",
    "num_workers=0",
    "logger=none",
    "report=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
)
