// Cross-entropy over HTTP in binary, for arrays of any size: go run ./safetensors
//
// A safetensors file is the length of its header (8 bytes, little-endian), the header as JSON, and the elements.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

var client = &http.Client{Timeout: 10 * time.Second}

type tensor struct {
	Dtype   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
}

// encode builds a file of logits (N, C) and labels (N).
func encode(logits []float32, labels []int64) []byte {
	rows, split := len(labels), 4*len(logits)
	header, _ := json.Marshal(map[string]tensor{ // cannot fail
		"logits": {"F32", []int{rows, len(logits) / rows}, [2]int{0, split}},
		"labels": {"I64", []int{rows}, [2]int{split, split + 8*rows}},
	})
	var file bytes.Buffer
	for _, part := range []any{uint64(len(header)), header, logits, labels} {
		binary.Write(&file, binary.LittleEndian, part) // to memory: cannot fail
	}
	return file.Bytes()
}

// decode reads one tensor of a file into a pointer to a number or a slice of the right length.
func decode(file []byte, name string, values any) error {
	start := 8 + int(binary.LittleEndian.Uint64(file))
	var header map[string]json.RawMessage // __metadata__ is no tensor
	if err := json.Unmarshal(file[8:start], &header); err != nil {
		return err
	}
	var entry tensor
	if err := json.Unmarshal(header[name], &entry); err != nil {
		return err
	}
	data := file[start+entry.Offsets[0] : start+entry.Offsets[1]]
	return binary.Read(bytes.NewReader(data), binary.LittleEndian, values)
}

// post sends a file with options as in a query, and returns the file that comes back.
func post(file []byte, options string) ([]byte, error) {
	url := os.Getenv("LOSSEVAL_URL")
	if url == "" {
		url = "http://127.0.0.1:8000"
	}
	url += "/v1/cross-entropy?" + options
	response, err := client.Post(url, "application/x-safetensors", bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	var problem struct{ Title, Detail string } // RFC 9457
	if err != nil || response.StatusCode == http.StatusOK {
		return answer, err
	} else if json.Unmarshal(answer, &problem) != nil {
		return nil, fmt.Errorf("HTTP %s", response.Status)
	}
	return nil, fmt.Errorf("%s: %s", problem.Title, problem.Detail)
}

func main() {
	logits := []float32{
		0.3703, -0.1607, -0.7473, -2.2135,
		0.6929, -0.2042, -0.7660, -0.3613,
		-0.3363, 0.6417, 0.3103, 0.3132,
	}
	var loss float64
	gradients := make([]float32, len(logits))
	answer, err := post(encode(logits, []int64{0, 1, 2}), "include=loss,gradients")
	if err == nil {
		err = decode(answer, "loss", &loss)
	}
	if err == nil {
		err = decode(answer, "gradients", gradients)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(loss)
	fmt.Println(gradients)
}
