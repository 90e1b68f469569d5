"""Knowledge distillation: PGT takes the teacher's probabilities as targets. `# backpass` marks changes."""

import torch

import backpass  # backpass

torch.manual_seed(0)
loader = [(torch.randn(16, 1, 8, 8), torch.randint(10, (16,))) for _ in range(4)]
teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
student = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10))
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
criterion = backpass.PowerGradCrossEntropyLoss(alpha=0.3)  # backpass: instead of torch.nn.CrossEntropyLoss()

for epoch in range(2):
    for x, y in loader:
        with torch.no_grad():
            soft = teacher(x).softmax(1)
        output = student(x)
        loss = 0.5 * criterion(output, y) + 0.5 * criterion(output, soft)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
